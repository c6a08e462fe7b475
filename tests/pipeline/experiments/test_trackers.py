"""Runs are copied to trackers: to a real MLflow server, and to nothing that is not installed."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeline.pipeline.experiments.trackers import TRACKERS, history_of, send
from edgeline.pipeline.runs.run import Run, open_run
from edgeline.pipeline.runs.run_log import RunEntry, RunLog
from edgeline.serve.errors import ConfigError, EdgelineError
from tests.support.mlflow_server import make_environment, mlflow_server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def entry(evaluated_run: Run, tmp_path: Path) -> RunEntry:
    """The entry of a run in `tmp_path`."""
    folder = tmp_path / "runs" / evaluated_run.folder.name
    shutil.copytree(evaluated_run.folder, folder)
    return RunLog(tmp_path).record(open_run(folder), experiment="first")


def test_an_unknown_tracker_is_reported_with_the_known_ones(entry: RunEntry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use mlflow, wandb, tensorboard"):
        send(entry, tmp_path, "excel")


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_reported_with_its_package(
    entry: RunEntry, tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mlflow", "wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"{tracker} needs the package {TRACKERS[tracker][1]}: pip install"):
        send(entry, tmp_path, tracker)


def test_what_a_tracker_raises_becomes_one_line(entry: RunEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(entry: RunEntry, artifacts: Path) -> None:
        raise TimeoutError("no answer\nfrom the server")

    monkeypatch.setitem(TRACKERS, "mlflow", (fail, "mlflow-skinny"))  # type: ignore[index]
    with pytest.raises(EdgelineError, match=f"did not accept the run {entry.run}: no answer from the server"):
        send(entry, tmp_path, "mlflow")


def test_the_curves_of_a_run_whose_folder_is_gone_are_empty(entry: RunEntry, tmp_path: Path) -> None:
    assert len(history_of(entry, tmp_path)) == entry.metrics["epochs"]
    shutil.rmtree(tmp_path / "runs")
    assert history_of(entry, tmp_path) == []


@pytest.fixture(scope="module")
def mlflow_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def server(mlflow_python: Path, tmp_path: Path) -> Iterator[str]:
    with mlflow_server(mlflow_python, tmp_path / "mlflow") as address:
        yield address


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return dict(json.loads(reply.read()))


@pytest.mark.long
def test_a_run_arrives_at_an_mlflow_server_with_settings_figures_curves_and_plots(
    entry: RunEntry, tmp_path: Path, mlflow_python: Path, server: str
) -> None:
    program = "import sys; from edgeline.flows.cli.main import main; sys.argv = ['edgeline', *sys.argv[1:]]; main()"
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    variables = os.environ | {"PYTHONPATH": f"{ROOT}:{ours}", "MLFLOW_TRACKING_URI": server, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [mlflow_python, "-c", program, "runs", "--artifacts", str(tmp_path), "--send", "mlflow"]
    sent = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert "1 runs sent to mlflow" in sent.stderr

    api = f"{server}/api/2.0/mlflow"
    experiment = ask(f"{api}/experiments/get-by-name?experiment_name=first")["experiment"]["experiment_id"]
    [run] = ask(f"{api}/runs/search", {"experiment_ids": [experiment]})["runs"]
    assert run["info"]["run_name"] == entry.run
    parameters = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert parameters["model"] == entry.settings["model"]
    figures = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert figures["accuracy"] == pytest.approx(entry.metrics["accuracy"])
    curve = ask(f"{api}/metrics/get-history?run_id={run['info']['run_id']}&metric_key=val_loss")["metrics"]
    assert [point["value"] for point in curve] == pytest.approx([epoch["val_loss"] for epoch in history_of(entry, tmp_path)])
    files = ask(f"{api}/artifacts/list?run_id={run['info']['run_id']}&path=evaluate")["files"]
    assert "evaluate/confusion.png" in [file["path"] for file in files]
