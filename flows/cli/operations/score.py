"""`edgeline score`: the predictions of many images as a folder of Parquet files.

Nothing heavy is imported here; the command imports what it needs when it runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeline.flows.cli.options import Json
from edgeline.serve.cli.options import Artifact, Channel, Variant


def score(
    artifact: Artifact,
    source: Annotated[
        Path, typer.Argument(help="A folder of images, searched at any depth, or a CSV file with a column `path`.")
    ],
    output: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Folder for the results; `{name}` and `{version}` in it are replaced by the artifact's."
        ),
    ],
    channel: Channel = "stable",
    variant: Variant = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of most likely classes per image, at most all of them.")] = 5,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column with the probabilities of all classes.")
    ] = False,
    engine: Annotated[
        str, typer.Option(metavar="local|dask", help="What scores: threads of this process, or the workers of a Dask cluster.")
    ] = "local",
    address: Annotated[
        str, typer.Option(metavar="tcp://HOST:PORT", help="Address of the cluster's scheduler, for `--engine dask`.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Score all images of a folder with a published artifact, to Parquet files; needs the extra `parquet`.

    A row has path, SHA-256, most likely class, confidence, the most likely classes, and for an image that cannot be read the
    error instead. The version is that of the channel when the command starts; it is in each file's metadata. `_summary.json`
    counts classes and errors. A command that was stopped continues, and a repeated one scores what is new or has changed.

        edgeline score artifacts/store/birds photos/ --output scores/

        edgeline score artifacts/store/birds photos/ --output 'scores/{name}-{version}' --engine dask --address tcp://10.0.0.5:8786
    """
    from edgeline.flows.operations.score import ScoreOptions, scored_line
    from edgeline.flows.operations.score import score as score_images
    from edgeline.pipeline.engine_config import engine_config
    from edgeline.serve.artifact.channels import Followed

    options = ScoreOptions(
        variant=variant, top_k=top_k, probabilities=probabilities, engine=engine_config(kind=engine, address=address)
    )
    scored = score_images(Followed(artifact, channel), source, output, options)
    if as_json:
        print(json.dumps({"folder": str(scored.folder), "reused": scored.reused, **scored.summary}))
    else:
        print(scored_line(scored))
