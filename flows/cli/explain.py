"""`edgeline explain`: pictures of what a run's network looks at.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import enum
import json
from pathlib import Path
from typing import Annotated

import typer

from edgeline.flows.cli.options import Json, RunFolder


class Method(enum.StrEnum):
    """How the test images are placed on their map."""

    pca = "pca"
    umap = "umap"


def explain(
    folder: RunFolder,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Photos; by default the most confident mistakes in the test split."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; by default `explained` in the run's folder.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="A layer whose feature maps are shown; by default the last that is not too coarse.")
    ] = None,
    embedding: Annotated[
        Method, typer.Option("--map", help="Map of the test images: principal components, or UMAP if it is installed.")
    ] = Method.pca,
    count: Annotated[int, typer.Option(min=1, help="Number of test images, if no photos are given.")] = 8,
    as_json: Json = False,
) -> None:
    """Show what a run's network looks at: heatmaps, the feature maps of a layer, and a map of its test images.

    For each photo: the class activation map and the input gradient of the predicted class, and the 16 channels of a layer that
    vary most. The map of the test images shows which of them the network finds alike. Everything is written as pictures, with
    `report.html` to look at them.

        edgeline explain artifacts/runs/photos-0123456789ab

        edgeline explain artifacts/runs/photos-0123456789ab photo.jpg --layer blocks.4 --map umap
    """
    from edgeline.pipeline.evaluation.explained import Request, explain_run
    from edgeline.pipeline.runs.run import open_run

    run = open_run(folder)
    target = out or run.folder / "explained"
    request = Request(images=tuple(images or ()), layer=layer, embedding=embedding.value, count=count)
    explained = explain_run(run, request, target)
    if as_json:
        print(json.dumps({"folder": str(target), "images": [each.to_dict() for each in explained]}))
        return
    for each in explained:
        truth = f", truly {each.label}" if each.label is not None else ""
        print(f"{each.image}: {each.predicted} {each.probability:.1%}{truth}")
    print(f"{target / 'report.html'} shows them")
