"""The device's commands: `edgeline predict`, `edgeline check`, `edgeline drift` and `edgeline serve`.

Each is a module in this folder, imports its dependencies when it runs, so that `--help` is fast, and works with the base
install, except for `serve`. To add a command, add its module here and to `COMMANDS`.
"""

import typer

from edgeline.serve.cli.check import check
from edgeline.serve.cli.drift import drift
from edgeline.serve.cli.predict import predict
from edgeline.serve.cli.serve import serve

COMMANDS = (predict, check, drift, serve)
"""In the order in which `edgeline --help` lists them."""


def register(app: typer.Typer) -> None:
    """Add the device's commands to a command line."""
    for command in COMMANDS:
        app.command()(command)
