"""Experiments and the run log: cells in processes of their own, reused, failing alone, and resumed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edgeline.flows.experiment import MODULE, Experiment, Outcome, run_experiment
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.experiments.grid import base_values, make_cells, read_axes
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.pipeline.runs.run_log import RunLog


@pytest.fixture
def config(finished: PipelineConfig, tmp_path: Path) -> PipelineConfig:
    """The configuration of a finished run, in artifacts of its own."""
    shutil.copytree(finished.artifacts, tmp_path / "artifacts")
    return finished.model_copy(update={"artifacts": str(tmp_path / "artifacts")})


def experiment(config: PipelineConfig, *overrides: str, seeds: int = 1, processes: int = 1) -> Experiment:
    cells = make_cells(base_values(config), read_axes(overrides), seeds)
    folder = Path(config.artifacts) / "experiments" / "trial"
    return Experiment(name="trial", folder=folder, cells=cells, processes=processes)


def test_a_finished_cell_is_reused_and_one_that_fails_costs_that_cell_only(config: PipelineConfig) -> None:
    finished, too_few = run_experiment(experiment(config, "prepare.min_per_class=3,50"))
    assert finished.reused
    assert finished.run is not None
    assert (too_few.run, too_few.reused) == (None, False)
    assert "too few distinct images" in too_few.error
    assert "\n" not in too_few.error


def test_missing_weights_cost_the_cells_that_need_them(config: PipelineConfig) -> None:
    finished, missing = run_experiment(experiment(config, "weights=none,gone.pth"))
    assert finished.reused
    assert "gone.pth" in missing.error


def test_only_the_first_seed_of_a_setting_is_measured(config: PipelineConfig) -> None:
    trial = replace(experiment(config, "train.epochs=1,2", seeds=2), measure=True)
    assert [trial.steps(cell)[-1] for cell in trial.cells] == ["verify", "evaluate", "verify", "evaluate"]


@pytest.mark.long
def test_a_killed_cell_costs_that_cell_and_the_next_call_runs_only_what_is_missing(
    config: PipelineConfig, wait_for: Callable[..., int]
) -> None:
    trial = experiment(config, "train.epochs=4,5", seeds=2, processes=2)
    victim = trial.cells[-1]

    def find_process() -> int | None:
        found = subprocess.run(["pgrep", "-f", f"edgeline.flows.experiment .*{victim.key}"], capture_output=True, text=True)
        return int(found.stdout.split()[0]) if found.stdout else None

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_experiment, trial)
        os.kill(wait_for(find_process, 240), signal.SIGKILL)  # two cells are trained before it
        outcomes = running.result()
    assert [bool(outcome.error) for outcome in outcomes] == [False, False, False, True]
    assert "killed by signal 9" in outcomes[-1].error

    done: list[Outcome] = []
    outcomes = run_experiment(replace(trial, report=lambda outcome, _: done.append(outcome)))
    assert not any(outcome.error for outcome in outcomes)
    assert [outcome.cell.key for outcome in done if not outcome.reused] == [victim.key]
    assert len({outcome.run.folder for outcome in outcomes if outcome.run}) == 4
    splits = {(outcome.run.step("prepare") / "samples.csv").read_bytes() for outcome in outcomes if outcome.run}
    assert len(splits) == 1
    recorded = RunLog(Path(config.artifacts)).select(["experiment=trial"])
    assert [entry.state for entry in recorded] == ["finished"] * 4


def test_a_cell_ends_with_the_process_that_started_it(config: PipelineConfig, tmp_path: Path) -> None:
    trial = experiment(config, "train.epochs=6")
    settings = tmp_path / "cell.json"
    write_json(settings, trial.cells[0].config.model_dump(mode="json"))
    command = [sys.executable, "-m", MODULE, str(settings), "train,evaluate", "trial"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""
