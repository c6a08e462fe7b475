"""A real Prefect server and a real worker, each in its own process."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from edgeline.serve.classifier import Classifier

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
STEPS = {"prepare", "train", "evaluate", "export", "variants", "verify", "publish"}
START_S = 120
RUN_S = 300
STOP_S = 30


@contextmanager
def running(*command: str, environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of Prefect, stopped together with its child processes."""
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return int(holder.getsockname()[1])


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def environment(
    migrated_home: Callable[[], Path], wait_for: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Environment variables that make a process a client of a running server."""
    home, port = migrated_home(), free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    command = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(*command, environment=environment, folder=home) as server:
        wait_for(lambda: is_healthy(url) or server.poll() is not None, START_S)
        assert server.poll() is None, (home / "server.log").read_text()
        yield environment


@pytest.fixture
def client(environment: dict[str, str]) -> Iterator[SyncPrefectClient]:
    settings = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: None,
        PREFECT_HOME: environment["PREFECT_HOME"],
    }
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def call(*command: str, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def processes_of(home: str) -> list[str]:
    """The command lines of the processes that work for a server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"PREFECT_HOME={home}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_a_deployment_runs_on_schedule_and_publishes(
    environment: dict[str, str], client: SyncPrefectClient, photos: Path, wait_for: Any, tmp_path: Path
) -> None:
    edgeline = str(Path(sys.executable).with_name("edgeline"))
    folder = photos.parent  # relative paths refer to this folder
    options = ("--data", photos.name, "--artifacts", str(tmp_path), "--set", "train.epochs=3", "--cron", "* * * * *")
    output = call(edgeline, "deploy", *options, environment=environment, folder=folder)
    assert "prefect deployment run edgeline/tints" in output
    deployment = client.read_deployment_by_name("edgeline/tints")

    def started() -> Any:
        mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        runs = client.read_flow_runs(deployment_filter=mine)
        return next((run for run in runs if run.state_name not in ("Scheduled", "Late", "Pending")), None)

    def ended() -> Any:
        run = client.read_flow_run(flow_run.id)
        return run if run.state.is_final() else None

    with running(
        "worker", "start", "--pool", "edgeline", "--install-policy", "never", environment=environment, folder=tmp_path
    ):
        flow_run = wait_for(started, START_S)
        client.pause_deployment(deployment.id)  # one run is enough
        flow_run = wait_for(ended, RUN_S)
    log = (tmp_path / "worker.log").read_text()
    assert (flow_run.state_name, flow_run.auto_scheduled) == ("Completed", True), log
    Classifier.open(tmp_path / "store" / photos.name / "1")
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
    assert {task.name: task.state_name for task in tasks} == dict.fromkeys(STEPS, "Completed")
    keys = {artifact.key for artifact in client.read_artifacts() if artifact.flow_run_id == flow_run.id}
    assert keys == {
        "edgeline-tints",
        "edgeline-tints-confusion",
        *(f"edgeline-tints-{plot}-image" for plot in ("confusion", "history", "learning-curve", "reliability", "embedding")),
        "edgeline-tints-variants",
        "edgeline-tints-findings",
    }
    assert not [command for command in processes_of(environment["PREFECT_HOME"]) if "server" not in command]


def test_prefect_yaml_can_be_deployed_unchanged(environment: dict[str, str], client: SyncPrefectClient) -> None:
    call(sys.executable, "-m", "prefect", "work-pool", "create", "edgeline", "--type", "process", "--overwrite",
         environment=environment, folder=ROOT)  # fmt: skip
    call(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", environment=environment, folder=ROOT)
    [schedule] = client.read_deployment_by_name("edgeline-retrain/scheduled").schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Prague")
    on_demand = client.read_deployment_by_name("edgeline/on-demand")
    assert on_demand.schedules == []
    assert on_demand.enforce_parameter_schema
    assert on_demand.pull_steps == []
    assert client.read_deployment_by_name("edgeline-promote/promote").parameters["name"] == "birds"
