"""`edgeline label`: a local page for labeling photos. Imports its dependencies when it runs."""

from pathlib import Path
from typing import Annotated

import typer

STORE = Path("artifacts/store")


def label(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An inbox of `edgeline serve --inbox`, or any folder of photos.")
    ],
    artifact: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Predicts photos without a prediction, and has the classes; a path, or a name in artifacts/store.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE|A,B,...", help="Classes: a file with one in each line, or names with commas between."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Where labels are written; by default labels.csv in DIR.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for a free one.")] = 0,
) -> None:
    """Label photos on a local page, with the keyboard.

    Prints the address of the page, which only this machine and only who knows it can open. Shows the photos from which the
    model learns most first. Each decision is written at once to a CSV file with the columns `path,label`; the next start
    continues where the last one ended. Stop with Ctrl-C.

        edgeline label inbox/

        edgeline label photos/unsorted --artifact flowers

        edgeline retrain --data photos/ --name flowers --labels inbox/labels.csv
    """
    from edgeline.serve.labeling.main import LabelingConfig, find_artifact, parse_classes, run

    run(
        LabelingConfig(
            folder=folder,
            labels=labels,
            artifact=None if artifact is None else find_artifact(artifact, STORE),
            classes=() if classes is None else parse_classes(classes),
            port=port,
        )
    )
