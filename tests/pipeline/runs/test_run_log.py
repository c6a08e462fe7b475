"""The run log: what a run writes to it, and how runs are found in it."""

import shutil
from pathlib import Path

import pytest

from edgeline.pipeline.runs.run import Run, open_run
from edgeline.pipeline.runs.run_log import FILE_NAME, RunLog, recorded
from edgeline.serve.errors import ConfigError, EdgelineError, TrainingError


@pytest.fixture
def run(evaluated_run: Run, tmp_path: Path) -> Run:
    """A copy of a trained and evaluated run, in artifacts of its own."""
    shutil.copytree(evaluated_run.folder, tmp_path / "artifacts" / "runs" / evaluated_run.folder.name)
    return open_run(tmp_path / "artifacts" / "runs" / evaluated_run.folder.name)


@pytest.fixture
def log(run: Run) -> RunLog:
    return RunLog(Path(run.config.artifacts))


def test_an_entry_has_every_setting_and_the_figures_of_the_finished_steps(run: Run, log: RunLog) -> None:
    with recorded(run, experiment="first"):
        pass
    [entry] = log.select()
    assert (entry.run, entry.state, entry.error, entry.experiment) == (run.folder.name, "finished", "", "first")
    assert entry.settings["train.batch_size"] == run.config.train.batch_size
    assert entry.metrics.keys() >= {"accuracy", "accuracy_low", "macro_f1", "ece", "epochs", "bytes"}
    assert entry.metrics["bytes"] == (run.step("train") / "checkpoint.safetensors").stat().st_size


def test_a_run_that_fails_is_recorded_with_its_error_and_one_that_then_succeeds_without(run: Run, log: RunLog) -> None:
    with pytest.raises(TrainingError), recorded(run, experiment="first"):
        raise TrainingError("the loss became nan\nin epoch 3")
    [entry] = log.select(["state=failed"])
    assert entry.error == "the loss became nan in epoch 3"
    with recorded(run):
        pass
    [entry] = log.select()
    assert (entry.state, entry.error, entry.experiment) == ("finished", "", "first")


CONDITIONS = {
    "an equal setting": ("train.epochs=0", True),
    "another setting": ("model!=efficientnet_lite0", False),
    "a figure over a bound": ("accuracy > 0.1", True),
    "a figure under a bound": ("accuracy<=0.1", False),
    "a text compared with a number": ("model>=3", False),
    "a value that the run does not have": ("name=other", False),
}


@pytest.mark.parametrize(("condition", "found"), CONDITIONS.values(), ids=CONDITIONS)
def test_runs_are_selected_by_settings_and_figures(run: Run, log: RunLog, condition: str, found: bool) -> None:
    log.record(run)
    assert bool(log.select([condition])) is found


@pytest.mark.parametrize(
    ("condition", "message"), [("accuracy", "must look like"), ("acuracy>1", "no run has a value 'acuracy'")]
)
def test_a_condition_that_is_not_understood_is_an_error(run: Run, log: RunLog, condition: str, message: str) -> None:
    log.record(run)
    with pytest.raises(ConfigError, match=message):
        log.select([condition])


def test_a_deleted_log_is_filled_again_from_the_run_folders(run: Run, log: RunLog) -> None:
    assert log.select() == []
    log.refresh()
    log.refresh()
    [entry] = log.select()
    assert entry.metrics["accuracy"] > 0


def test_a_damaged_log_is_one_line_and_does_not_stop_a_run(run: Run, log: RunLog, caplog: pytest.LogCaptureFixture) -> None:
    (Path(run.config.artifacts) / FILE_NAME).write_bytes(b"not SQLite" * 100)
    with pytest.raises(EdgelineError, match="delete it, and it is filled again"):
        log.select()
    with recorded(run):
        pass
    assert "run log" in caplog.text
