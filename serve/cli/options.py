"""Options that several of the device's commands share. Nothing heavy is imported here."""

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[Path, typer.Argument(help="An artifact's folder, or a name's folder in a store for its newest version.")]
Variant = Annotated[str | None, typer.Option(help="Which form of the model; by default the float32 reference.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Threads to compute with; by default as many as this process may use.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
