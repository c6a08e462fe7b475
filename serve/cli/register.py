"""The device's commands: `edgeline predict`, `edgeline check`, `edgeline drift` and `edgeline serve`.

Each is a module of its own that imports what it needs when it runs, so `--help` is instant, and all but `serve` work with the
base install.
"""

import typer

from edgeline.serve.cli.check import check
from edgeline.serve.cli.drift import drift
from edgeline.serve.cli.predict import predict
from edgeline.serve.cli.serve import serve


def register(app: typer.Typer) -> None:
    """Add the device's commands to a command line."""
    app.command()(predict)
    app.command()(check)
    app.command()(drift)
    app.command()(serve)
