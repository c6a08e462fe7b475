import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey

from edgeline.flows.extras import EXTRAS
from edgeline.flows.orchestration.crashes.crashed_runs import RESTART
from edgeline.flows.orchestration.crashes.run_process import runs_in_processes
from edgeline.flows.orchestration.deployments.deployment import deploy
from edgeline.flows.up.display import display
from edgeline.flows.up.run import locked, run
from edgeline.flows.up.services import UpOptions, names_in, services
from edgeline.flows.up.supervisor import Running, State
from edgeline.pipeline.config import PipelineConfig
from edgeline.serve.artifact.reader import versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError, MissingExtraError
from tests.flows.up.conftest import START_S, Up, client_of, free_port, up_in

SWEPT_S = 180
HOLDER = """
import sys
from prefect.concurrency.sync import concurrency
with concurrency("device", occupy=1, strict=True, lease_duration=60):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def client(up: Up) -> Iterator[SyncPrefectClient]:
    with client_of(up) as client:
        yield client


def test_a_port_in_use_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is in use; .* --port"):
            run(UpOptions(artifacts=tmp_path, port=port, prefect_port=free_port()))
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is in use; .* --prefect-port"):
            run(UpOptions(artifacts=tmp_path, port=free_port(), prefect_port=port))


def test_a_second_one_in_the_same_folder_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    options = UpOptions(artifacts=tmp_path)
    with locked(options), pytest.raises(ConfigError, match=f"already runs in {tmp_path}/up as process {os.getpid()};"):
        run(options)


def test_a_missing_extra_is_an_error_instead_of_a_service_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeline.flows.up.run.NEEDED", ("opentelemetry_of_nobody",))
    monkeypatch.setitem(EXTRAS, "opentelemetry_of_nobody", "otel")
    with pytest.raises(MissingExtraError, match="otel"):
        run(UpOptions(artifacts=tmp_path))


def test_without_a_terminal_each_change_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = services(UpOptions(artifacts=tmp_path))[:2]
    running = [Running(service=each, log=tmp_path / each.name) for each in (first, second)]
    with display(["note"]) as show:
        running[1].detail = "for prefect"
        show(running)
        running[0].state = State.READY
        show(running)
        show(running)
    assert capsys.readouterr().out.splitlines() == [
        "note",
        "prefect: waiting",
        "worker: waiting for prefect",
        "prefect: ready, http://127.0.0.1:4200",
    ]


def test_only_names_with_a_version_are_served(tmp_path: Path) -> None:
    assert names_in(tmp_path / "store") == []
    (tmp_path / "birds" / "1").mkdir(parents=True)
    (tmp_path / "birds" / "1" / "manifest.json").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    assert names_in(tmp_path) == ["birds"]


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_whose_worker_was_killed_is_started_again_and_publishes_one_version(
    up: Up, client: SyncPrefectClient, unpublished: PipelineConfig, wait_for: Any, signum: signal.Signals
) -> None:
    config = unpublished
    deployment = client.read_deployment_by_name(deploy(config).deployment)
    wait_for(lambda: up.is_ready("prefect", "worker", "sweep"), START_S)
    flow_run = client.create_flow_run_from_deployment(deployment.id)
    wait_for(lambda: str(flow_run.id) in runs_in_processes(), START_S)
    processes = [up.pid("worker", "worker start")]
    if signum is signal.SIGKILL:  # otherwise the worker ends its run
        processes += [pid for pid in up.pids("worker") if f"PREFECT__FLOW_RUN_ID={flow_run.id}" in environment_of(pid)]
    for pid in processes:
        os.kill(pid, signum)
    wait_for(lambda: client.read_flow_run(flow_run.id).state_name == "Crashed", SWEPT_S)
    key = FlowRunFilterIdempotencyKey(any_=[f"{RESTART}{flow_run.id}"])

    def restart() -> Any:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=key))

    [again] = wait_for(restart, SWEPT_S)
    wait_for(lambda: client.read_flow_run(again.id).state_name == "Completed", SWEPT_S)
    assert versions(config.store / "tints") == [1]
    Classifier.open(config.store / "tints" / "1")


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode()


@pytest.mark.long
def test_the_slot_of_a_killed_holder_is_free_after_the_server_was_killed(
    up: Up, client: SyncPrefectClient, wait_for: Any
) -> None:
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="device", limit=1))
    environment = os.environ | {"PREFECT_API_URL": up.api, "PREFECT_HOME": str(up.artifacts / "client")}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert client.read_global_concurrency_limit_by_name("device").active_slots == 1
        holder.kill()
    before = up.pid("prefect", "server start")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: any("prefect: died" in line for line in up.lines), START_S)
    wait_for(lambda: up.is_ready("prefect"), START_S)
    wait_for(lambda: client.read_global_concurrency_limit_by_name("device").active_slots == 0, SWEPT_S)


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_waits_for_a_first_version_and_nothing_is_left_afterwards(
    finished: PipelineConfig,
    database: Path,
    tmp_path: Path,
    wait_for: Callable[..., Any],
    signum: signal.Signals,
) -> None:
    with up_in(tmp_path / "artifacts", database) as up:
        wait_for(lambda: up.is_ready("prefect", "worker", "sweep"), START_S)
        assert f"models: waiting for a first version in {up.artifacts / 'store'} (edgeline run --data photos/)" in up.lines
        shutil.copytree(finished.store, tmp_path / "copy")
        os.rename(tmp_path / "copy", up.artifacts / "store")
        wait_for(lambda: up.is_ready("models"), START_S)
        up.process.send_signal(signum)
        assert up.process.wait(90) == (0 if signum is signal.SIGTERM else -signum)
        wait_for(lambda: not up.all_pids())
        stopped = [line.partition(":")[0] for line in up.lines if line.endswith(": stopped")]
        assert stopped == (["models", "sweep", "worker", "prefect"] if signum is signal.SIGTERM else [])
