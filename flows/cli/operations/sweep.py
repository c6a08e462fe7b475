"""`edgeline sweep`: find crashed runs and start them again. Imports Prefect when it runs."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from edgeline.flows.cli.options import Json


def sweep(
    every: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="Repeat until stopped; 30 is a good value."),
    ] = None,
    gone: Annotated[
        list[str] | None, typer.Option(metavar="MACHINE", help="A machine that was switched off for good; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Mark runs whose process on this machine is gone as crashed, and start crashed runs again, once.

    Prefect leaves the run of a worker that was killed in the state Running. Run this on each machine with a worker, as the
    worker's user, and give the worker the name of its machine. A run that is started again has the same parameters, continues
    with the first unfinished step, and publishes the same version.

        edgeline sweep

        edgeline sweep --every 30

        edgeline sweep --gone gpu-2
    """
    from edgeline.flows.orchestration.server import opt_out
    from edgeline.serve.errors import EdgelineError

    opt_out()
    from edgeline.flows.orchestration.crashes.crashed_runs import sweep as sweep_runs
    from edgeline.flows.orchestration.crashes.crashed_runs import sweep_lines

    reported: list[str] = []
    while True:
        try:
            swept = sweep_runs(gone or ())
            lines = [json.dumps(asdict(swept))] if as_json else sweep_lines(swept)
        except EdgelineError as error:
            if every is None or error.code != "prefect_unreachable":
                raise
            lines = [f"waiting: {' '.join(str(error).split()).partition('; ')[0]}"]  # the rest is advice for other commands
        if every is None:
            print("\n".join(lines) or "no crashed runs")
            return
        if lines and lines != reported:  # what cannot be judged is found again each time
            print("\n".join(lines), flush=True)
        reported = lines
        time.sleep(every)
