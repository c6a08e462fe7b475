import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelling, Completed, Crashed, Pending, Running

from edgeline.flows.cli.operations.sweep import sweep as command
from edgeline.flows.orchestration.crashes import crashed_runs
from edgeline.flows.orchestration.crashes.crashed_runs import RESTART, WORKER, sweep
from edgeline.flows.orchestration.crashes.record import PROCESS, record_process
from edgeline.flows.orchestration.crashes.run_process import RUN_VARIABLE, RunProcess, this_machine
from edgeline.serve.errors import ConfigError


@flow(name="edgeline-swept")
def swept(number: int = 0) -> None:
    record_process()


@flow(name="somebody-elses")
def foreign() -> None:
    pass


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def dead() -> RunProcess:
    """A process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return replace(RunProcess.current(), pid=ended.pid)


@pytest.fixture
def deployment(client: SyncPrefectClient) -> Iterator[UUID]:
    identity = client.create_deployment(client.create_flow(swept), name="tested", enforce_parameter_schema=False)
    yield identity
    client.delete_deployment(identity)


@pytest.fixture
def started(client: SyncPrefectClient) -> Iterator[Callable[..., FlowRun]]:
    """`started(state, ...)`: a run in a state, as its worker and its process left it."""
    made: list[UUID] = []

    def start(state: State[Any], deployment: UUID | None = None, labels: dict[str, Any] | None = None, **more: Any) -> FlowRun:
        if deployment is None:
            run = client.create_flow_run(more.pop("flow", swept))
        else:
            run = client.create_flow_run_from_deployment(deployment, **more)
        made.append(run.id)
        client.update_flow_run_labels(run.id, labels or {})
        client.set_flow_run_state(run.id, state, force=True)
        return client.read_flow_run(run.id)

    yield start
    for identity in made:
        with suppress(Exception):
            client.delete_flow_run(identity)


def restart_of(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    key = FlowRunFilterIdempotencyKey(any_=[f"{RESTART}{run.id}"])
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=key))


def test_a_run_whose_process_is_gone_is_crashed_and_started_again_once_with_its_parameters(
    client: SyncPrefectClient, started: Callable[..., FlowRun], deployment: UUID, dead: RunProcess
) -> None:
    run = started(Running(), deployment, {PROCESS: str(dead)}, parameters={"number": 7}, tags=["night"])
    first, second = sweep(), sweep()
    found = client.read_flow_run(run.id)
    assert found.state_name == "Crashed"
    assert f"its process {dead.pid} on {dead.machine} is gone" in (found.state.message if found.state else "")
    [again] = restart_of(client, run)
    assert (again.parameters, again.tags, again.state_name) == ({"number": 7}, ["night"], "Scheduled")
    assert [each.restart for each in first.restarted if each.id == str(run.id)] == [str(again.id)]
    assert str(run.id) not in {each.id for each in (*second.ended, *second.restarted)}
    client.update_flow_run_labels(again.id, {PROCESS: str(dead)})
    client.set_flow_run_state(again.id, Running(), force=True)
    third = sweep()
    assert client.read_flow_run(again.id).state_name == "Crashed"
    assert restart_of(client, again) == []
    assert third.restarted == []


def test_a_run_that_its_worker_marked_as_crashed_is_started_again(
    client: SyncPrefectClient, started: Callable[..., FlowRun], deployment: UUID
) -> None:
    run = started(Crashed(), deployment)
    sweep()
    assert len(restart_of(client, run)) == 1


def test_a_crashed_run_is_not_started_again_after_a_later_one_with_the_same_parameters(
    client: SyncPrefectClient, started: Callable[..., FlowRun], deployment: UUID
) -> None:
    crashed = [started(Running(), deployment, parameters={"number": number}) for number in (1, 2)]
    later = started(Running(), deployment, {PROCESS: str(RunProcess.current())}, parameters={"number": 1})
    for run in crashed:
        client.set_flow_run_state(run.id, Crashed())
    sweep()
    assert [len(restart_of(client, run)) for run in crashed] == [0, 0]  # the later one is in progress
    client.set_flow_run_state(later.id, Completed())
    sweep()
    assert [len(restart_of(client, run)) for run in crashed] == [0, 1]


def test_crashed_runs_of_one_deployment_are_started_again_one_after_another(
    client: SyncPrefectClient, started: Callable[..., FlowRun], deployment: UUID
) -> None:
    crashed = [started(Running(), deployment, parameters={"number": number}) for number in (1, 2)]
    for run in reversed(crashed):
        client.set_flow_run_state(run.id, Crashed())
    for _ in range(2):
        sweep()
        assert [len(restart_of(client, run)) for run in crashed] == [1, 0]
    [again] = restart_of(client, crashed[0])
    client.set_flow_run_state(again.id, Completed(), force=True)
    sweep()
    assert [len(restart_of(client, run)) for run in crashed] == [1, 1]


def test_a_cancelled_run_whose_process_is_gone_becomes_cancelled_and_is_not_started_again(
    client: SyncPrefectClient, started: Callable[..., FlowRun], deployment: UUID, dead: RunProcess
) -> None:
    run = started(Cancelling(), deployment, {PROCESS: str(dead)})
    sweep()
    assert client.read_flow_run(run.id).state_name == "Cancelled"
    assert restart_of(client, run) == []


ME = RunProcess.current()
HEALTHY: dict[str, tuple[State[Any], dict[str, str]]] = {
    "its process runs": (Running(), {PROCESS: str(ME)}),
    "on another machine": (Running(), {PROCESS: str(replace(ME, machine="elsewhere", pid=1))}),
    "started by a worker of another machine": (Running(), {WORKER: "elsewhere"}),
    "a worker is about to start it": (Pending(), {WORKER: this_machine()}),
    "it recorded neither worker nor process": (Running(), {}),
    "it has completed": (Completed(), {PROCESS: str(replace(ME, started="earlier"))}),
}


def test_runs_that_may_be_healthy_are_left_alone(client: SyncPrefectClient, started: Callable[..., FlowRun]) -> None:
    runs = {name: started(state.model_copy(), None, labels) for name, (state, labels) in HEALTHY.items()}
    sweep()
    states = {name: client.read_flow_run(run.id).state_type for name, run in runs.items()}
    assert states == {name: state.type for name, (state, _) in HEALTHY.items()}


def test_a_flow_of_others_is_left_alone(client: SyncPrefectClient, started: Callable[..., FlowRun], dead: RunProcess) -> None:
    run = started(Running(), None, {PROCESS: str(dead)}, flow=foreign)
    sweep()
    assert client.read_flow_run(run.id).state_name == "Running"


DEAD: dict[str, tuple[State[Any], dict[str, str]]] = {
    "another process has its id": (Running(), {PROCESS: str(replace(ME, started=ME.started[:-1] + "x"))}),
    "the machine was started again": (Running(), {PROCESS: str(replace(ME, started="another boot-1"))}),
    "killed before it began": (Running(), {WORKER: this_machine()}),
}


def test_runs_whose_process_is_gone_are_crashed(client: SyncPrefectClient, started: Callable[..., FlowRun]) -> None:
    runs = {name: started(state.model_copy(), None, labels) for name, (state, labels) in DEAD.items()}
    sweep()
    assert {name: client.read_flow_run(run.id).state_name for name, run in runs.items()} == dict.fromkeys(DEAD, "Crashed")


def test_a_process_that_a_worker_has_started_keeps_its_run_alive(
    client: SyncPrefectClient, started: Callable[..., FlowRun]
) -> None:
    run = started(Running(), None, {WORKER: this_machine()})
    environment = os.environ | {RUN_VARIABLE: str(run.id)}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as process:
        sweep()
        assert client.read_flow_run(run.id).state_name == "Running"
        process.kill()
    sweep()
    assert client.read_flow_run(run.id).state_name == "Crashed"


def test_a_run_whose_process_starts_during_the_sweep_is_alive(
    client: SyncPrefectClient, started: Callable[..., FlowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(Running(), None, {WORKER: this_machine()})
    environment, read = os.environ | {RUN_VARIABLE: str(run.id)}, crashed_runs._runs
    processes = []

    def read_then_start(*arguments: Any) -> list[FlowRun]:
        found = read(*arguments)
        processes.append(subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE))
        return found

    monkeypatch.setattr(crashed_runs, "_runs", read_then_start)
    sweep()
    for process in processes:
        process.kill()
        process.communicate()
    assert client.read_flow_run(run.id).state_name == "Running"


def test_a_pending_run_that_no_worker_started_is_crashed_after_a_while(
    client: SyncPrefectClient, started: Callable[..., FlowRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(Pending())
    sweep()
    assert client.read_flow_run(run.id).state_name == "Pending"
    monkeypatch.setattr(crashed_runs, "PENDING_S", 0.0)
    sweep()
    assert client.read_flow_run(run.id).state_name == "Crashed"


def test_the_runs_of_a_machine_that_is_gone_are_crashed(client: SyncPrefectClient, started: Callable[..., FlowRun]) -> None:
    recorded = started(Running(), None, {PROCESS: str(replace(ME, machine="sold"))})
    starting = started(Running(), None, {WORKER: "sold"})
    sweep(["sold"])
    assert {client.read_flow_run(run.id).state_name for run in (recorded, starting)} == {"Crashed"}


def test_a_flow_records_its_process(client: SyncPrefectClient) -> None:
    run = swept(return_state=True).state_details.flow_run_id
    assert RunProcess.parse(client.read_flow_run(run).labels[PROCESS]) == ME


def test_the_command_prints_what_was_found_and_done(
    started: Callable[..., FlowRun], deployment: UUID, dead: RunProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started(Running(), deployment, {PROCESS: str(dead)})
    command()
    found, again = capsys.readouterr().out.splitlines()
    assert found == f"{run.name} ({run.id}): its process {dead.pid} on {dead.machine} is gone"
    assert again.startswith(f"{run.name} ({run.id}): started again as ")
    command()
    assert capsys.readouterr().out == "no crashed runs\n"


def test_a_sweep_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashed_runs, "configured_url", lambda: None)
    with pytest.raises(ConfigError, match="set PREFECT_API_URL"):
        sweep()
