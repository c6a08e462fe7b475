"""Run an experiment: each cell of a grid in a process of its own, several at a time.

A cell is an ordinary run, so a finished one is recognized by its key and reused, and one that was stopped resumes. A cell that
fails, or whose process is killed, costs that cell only.

    python -m edgeline.flows.experiment CONFIG.json train,evaluate

runs one cell; `run_experiment` starts these processes. Neither PyTorch nor matplotlib is imported before a cell is run.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edgeline.flows.steps import execute, step_named
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import find_run, prepare
from edgeline.pipeline.experiments.grid import Cell
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.pipeline.runs.home import ensure_home
from edgeline.pipeline.runs.receipts import is_current
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.runs.run_log import recorded
from edgeline.serve.errors import EdgelineError, WeightsError
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.system_errors import out_of_memory, system_error

TRAINED = ("train", "evaluate")
MEASURED = (*TRAINED, "export", "variants", "verify")
"""The steps of a cell whose files are timed too."""
MODULE = "edgeline.flows.experiment"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a cell."""

    cell: Cell
    run: Run | None
    """None if it failed before its data were prepared."""
    error: str = ""
    reused: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """A grid of cells, and how to run it."""

    name: str
    folder: Path
    """For the configurations and logs of the cells."""
    cells: Sequence[Cell]
    measure: bool = False
    """Also export the first seed of each setting, make its variants and time them."""
    processes: int = 1
    report: Callable[[Outcome, int], None] = field(default=lambda outcome, done: None)
    """Called after each cell, with the number of cells that are done."""

    def steps(self, cell: Cell) -> tuple[str, ...]:
        """The steps of a cell after `prepare`."""
        first = min(other.seed for other in self.cells if other.setting == cell.setting)
        return MEASURED if self.measure and cell.seed == first else TRAINED


def run_experiment(experiment: Experiment) -> list[Outcome]:
    """Run the cells that are not finished, and return the outcome of each, in order.

    The first cell of each backbone runs before its others, which then find the features of the images in the cache.

    Raises:
        DataError: the data does not exist, or has no known layout.
    """
    (experiment.folder / "cells").mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    lock = threading.Lock()
    waiting = []
    for cell in experiment.cells:
        known = _known(cell, experiment.steps(cell))
        if known is None:
            waiting.append(cell)
        else:
            outcomes[cell.key] = known
            experiment.report(known, len(outcomes))
    slots = list(range(experiment.processes))

    def work(cell: Cell) -> None:
        with lock:
            slot = slots.pop()
        outcome = _run_in_process(experiment, cell, slot)
        with lock:
            slots.append(slot)
            outcomes[cell.key] = outcome
            experiment.report(outcome, len(outcomes))

    first = {(cell.config.model, cell.config.weights): cell for cell in reversed(waiting)}.values()
    for wave in (first, [cell for cell in waiting if cell not in first]):
        pool = ThreadPoolExecutor(experiment.processes)
        try:
            list(pool.map(work, wave))
        finally:
            pool.shutdown(cancel_futures=True)
    return [outcomes[cell.key] for cell in experiment.cells]


def find_finished(cell: Cell, steps: Sequence[str]) -> Run | None:
    """Return a cell's run if every step has a result for its configuration, data and code."""
    run, key = find_run(cell.config)
    if not is_current(run.step("prepare"), key):
        return None
    # In order: a key can only be computed from the results before it.
    return run if all(is_current(run.step(name), step_named(name).key(run)) for name in steps) else None


def _known(cell: Cell, steps: Sequence[str]) -> Outcome | None:
    """The outcome of a cell without running it: it is finished, or its weights do not exist."""
    try:
        finished = find_finished(cell, steps)
    except WeightsError as error:
        return Outcome(cell, None, error=str(error))
    return Outcome(cell, finished, reused=True) if finished else None


def run_cell(config: Path, steps: Sequence[str], experiment: str) -> None:
    """Run one cell in this process.

    Args:
        config: its configuration.
        steps: after `prepare`.
        experiment: name of the experiment, for the run log.

    Raises:
        EdgelineError: a step failed.
    """
    settings = load_config(config)
    ensure_home(Path(settings.artifacts))
    run, _ = prepare(settings)
    with recorded(run, experiment):
        for name in steps:
            execute(name, run)


def _run_in_process(experiment: Experiment, cell: Cell, slot: int) -> Outcome:
    config = experiment.folder / "cells" / f"{cell.key}.json"
    write_json(config, cell.config.model_dump(mode="json"))
    log = config.with_suffix(".log")
    steps = experiment.steps(cell)
    command = [sys.executable, "-m", MODULE, str(config), ",".join(steps), experiment.name]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "EDGELINE_CORES": _cores(slot, experiment.processes)}
    with log.open("wb") as output:
        # Its standard input ends with this process, however that ends; `main` then ends the cell.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment)
        with process:
            code = process.wait()
    finished = find_finished(cell, steps) if code == 0 else None
    if finished is not None:
        return Outcome(cell, finished)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1] if code > 0 and lines else f"its process was killed by signal {-code}" if code < 0 else "no result"
    return Outcome(cell, None, error=f"{reason.removeprefix('edgeline: ')} (log: {log})")


def _cores(slot: int, processes: int) -> str:
    """The processors of one of several processes: an equal share of those that this one may use; empty for all."""
    if processes == 1 or not hasattr(os, "sched_getaffinity"):
        return ""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, min(len(cores), usable_cores()) // processes)
    start = slot * share % len(cores)
    return ",".join(map(str, cores[start : start + share]))


def main() -> None:
    """Run the cell that the arguments name, and turn an error into one line and exit code 1."""
    config, steps, experiment = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores := os.environ.get("EDGELINE_CORES"):
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    try:
        run_cell(Path(config), steps.split(","), experiment)
    except Exception as error:
        known = (out_of_memory(error) or error) if isinstance(error, EdgelineError) else system_error(error)
        if known is None:
            raise
        print(f"edgeline: {' '.join(str(known).split())} [{known.code}]", file=sys.stderr)
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when its standard input ends. What is unfinished resumes, as after a kill."""
    os.read(sys.stdin.fileno(), 1)  # not through the buffer, whose lock would be held when this process ends
    os._exit(1)


if __name__ == "__main__":
    main()
