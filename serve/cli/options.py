"""Options that several of the device's commands share. Imports nothing heavy."""

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[Path, typer.Argument(help="An artifact's folder, or a name's folder in a store for its stable version.")]
Variant = Annotated[str | None, typer.Option(help="Variant of the model; by default the float32 reference.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Threads for one image; by default as many as this process may use.")
]
Channel = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Channel of a name's folder whose version is used: `stable`, `latest`, `canary` or another one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
