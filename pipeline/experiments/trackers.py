"""Hooks that copy a run to MLflow, Weights & Biases or TensorBoard: `edgeline runs --send mlflow`.

Each is the few lines that its library needs, and the library is imported only then. A library's own settings decide where the
run goes: `MLFLOW_TRACKING_URI`, `WANDB_MODE` and `WANDB_API_KEY`; TensorBoard's files are written below the artifacts folder.
A new hook is a function here and its entry in `TRACKERS`.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeline.pipeline.runs.run_log import RunEntry
from edgeline.serve.errors import ConfigError, EdgelineError

Tracker = Callable[[RunEntry, Path], None]
"""Copies a run; called with its entry in the run log and the artifacts folder."""
PROJECT = "edgeline"


def send_to_mlflow(entry: RunEntry, artifacts: Path) -> None:
    """Create an MLflow run with the settings, the figures, the curves, and the evaluation's files."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(entry.experiment or PROJECT)
    with mlflow.start_run(run_name=entry.run):
        mlflow.log_params(settings_of(entry))
        mlflow.log_metrics(entry.metrics)
        for epoch, values in enumerate(history_of(entry, artifacts), start=1):
            mlflow.log_metrics(values, step=epoch)
        if (folder := artifacts / "runs" / entry.run / "evaluate").is_dir():
            mlflow.log_artifacts(str(folder), "evaluate")


def send_to_wandb(entry: RunEntry, artifacts: Path) -> None:
    """Create a run in Weights & Biases with the settings, the figures and the curves."""
    wandb = importlib.import_module("wandb")
    with wandb.init(project=PROJECT, group=entry.experiment or None, name=entry.run, config=settings_of(entry)) as run:
        for epoch, values in enumerate(history_of(entry, artifacts), start=1):
            run.log(values, step=epoch)
        run.summary.update(entry.metrics)


def send_to_tensorboard(entry: RunEntry, artifacts: Path) -> None:
    """Write a folder of event files with the settings, the figures and the curves, for `tensorboard --logdir`."""
    tensorboard = importlib.import_module("torch.utils.tensorboard")
    folder = artifacts / "tensorboard" / (entry.experiment or PROJECT) / entry.run
    with tensorboard.SummaryWriter(str(folder)) as writer:
        writer.add_text("settings", json.dumps(settings_of(entry), indent=1))
        for name, value in entry.metrics.items():
            writer.add_scalar(name, value)
        for epoch, values in enumerate(history_of(entry, artifacts), start=1):
            for name, value in values.items():
                writer.add_scalar(name, value, epoch)


TRACKERS: Mapping[str, tuple[Tracker, str]] = {
    "mlflow": (send_to_mlflow, "mlflow-skinny"),
    "wandb": (send_to_wandb, "wandb"),
    "tensorboard": (send_to_tensorboard, "tensorboard"),
}
"""By name: the hook, and the package that it needs."""


def send(entry: RunEntry, artifacts: Path, tracker: str) -> None:
    """Copy a run to a tracker.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
        EdgelineError: the tracker did not accept the run.
    """
    if tracker not in TRACKERS:
        raise ConfigError(f"no tracker {tracker!r}; use {', '.join(TRACKERS)}")
    hook, package = TRACKERS[tracker]
    try:
        hook(entry, artifacts)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{tracker} needs the package {package}: pip install {package}") from error
    except Exception as error:  # each library has its own exception types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EdgelineError(f"{tracker} did not accept the run {entry.run}: {reason}", code="tracker_failed") from error


def settings_of(entry: RunEntry) -> dict[str, Any]:
    """The settings of a run without lists and empty values, as trackers show them."""
    return {name: value for name, value in entry.settings.items() if value not in ("", None, [])}


def history_of(entry: RunEntry, artifacts: Path) -> list[dict[str, float]]:
    """Losses and accuracy by epoch; empty if the run's folder is gone."""
    path = artifacts / "runs" / entry.run / "train" / "checkpoint.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["history"]) if path.is_file() else []
