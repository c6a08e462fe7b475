"""`edgeline up`: all services of a machine. Imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer


def up(
    artifacts: Annotated[
        Path, typer.Option(help="Folder of runs and the store; the services' data are in `up/` there.")
    ] = Path("artifacts"),
    name: Annotated[
        str | None, typer.Option(help="The model to serve; by default every one that is in the store at the start.")
    ] = None,
    host: Annotated[str, typer.Option(help="Listen address of the inference server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the inference server.")] = 8000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server, on 127.0.0.1.")] = 4200,
    pool: Annotated[str, typer.Option(help="Work pool of the worker; created as a process pool if absent.")] = "edgeline",
) -> None:
    """Start what a team on one machine needs, and keep it running until Ctrl-C.

    A Prefect server with its UI, a worker, the sweep that starts crashed runs again, and the inference server with its page,
    which follows the channel `stable` and waits for a first version. What dies is started again. Without a terminal, prints a
    line for each change instead of a table. If this process is killed, all others end too.

        edgeline up

        edgeline up --artifacts /srv/edgeline/artifacts --name birds --port 8080
    """
    from edgeline.flows.up.run import run
    from edgeline.flows.up.services import UpOptions

    run(UpOptions(artifacts=artifacts, name=name, host=host, port=port, prefect_port=prefect_port, pool=pool))
