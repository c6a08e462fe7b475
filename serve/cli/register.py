"""The device's commands: `edgeline predict`, `check`, `drift`, `serve` and `label`.

Each is a module in this folder, imports its dependencies when it runs, so that `--help` is fast, and works with the base
install, except for `serve` and `label`. To add a command, add its module here and to `COMMANDS`.
"""

import typer

from edgeline.serve.cli.check import check
from edgeline.serve.cli.drift import drift
from edgeline.serve.cli.label import label
from edgeline.serve.cli.predict import predict
from edgeline.serve.cli.serve import serve

COMMANDS = (predict, check, drift, serve, label)
"""In the order in which `edgeline --help` lists them."""


def register(app: typer.Typer) -> None:
    """Add the device's commands to a command line."""
    for command in COMMANDS:
        app.command()(command)
