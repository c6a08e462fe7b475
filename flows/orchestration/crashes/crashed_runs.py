"""Find the runs whose process is gone, mark them as crashed, and start crashed runs again, once.

    swept = sweep()

Prefect marks a run as crashed only if its worker notices: the run of a worker that was killed or stopped, or of a machine that
was switched off, stays in the state Running. Here a run is dead only if its process on this machine is known to have ended; a
run is never judged by silence, so a healthy one is not touched however long it takes (ADR 0026). Runs of other machines are
left to the sweep there, unless the caller names their machine as gone.

A run that is started again has the same parameters and an idempotency key, so that there is one new run however many sweeps
find the old one. It recognizes finished steps and publishes the same version (`docs/guarantees.md`).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterId,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from edgeline.flows.orchestration.crashes.record import PROCESS
from edgeline.flows.orchestration.crashes.run_process import RunProcess, exists, runs_in_processes, this_machine
from edgeline.flows.orchestration.server import check_server, configured_url
from edgeline.serve.errors import ConfigError, EdgelineError

if TYPE_CHECKING:
    from uuid import UUID

WORKER = "prefect.worker.name"
RESTART = "edgeline-restart-"
"""Prefix of the idempotency key of a run that was started again; the id of the crashed run follows."""
PENDING_S = 90.0
"""How long a worker may take from claiming a run to starting its process."""
WITHIN = timedelta(hours=24)
"""Runs that crashed earlier are not started again."""
LIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
PAGE = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class SweptRun:
    """A run that a sweep found crashed, marked as crashed or started again."""

    id: str
    name: str
    what: str
    """What was found and done, for a person."""
    restart: str | None = None
    """The id of the new run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a sweep did."""

    ended: list[SweptRun]
    """Runs whose process was gone; marked as crashed now, or cancelled if that was asked for."""
    restarted: list[SweptRun]
    """Crashed runs that were started again now."""
    alive: int
    """Runs whose process runs."""
    elsewhere: list[SweptRun]
    """Unfinished runs that cannot be judged on this machine."""


def sweep(gone: Collection[str] = ()) -> Sweep:
    """Mark the runs of this machine whose process is gone as crashed, and start crashed runs again.

    Only flows of edgeline are looked at. A run is started again if it belongs to a deployment, crashed within the last 24
    hours, was not itself started again, and no later run of its deployment has the same parameters. While another run of the
    deployment is in progress, it waits for a later sweep.

    Args:
        gone: names of machines that were switched off for good; their runs count as dead.

    Raises:
        ConfigError: no server is configured.
        EdgelineError: it does not respond.
    """
    with _connected() as client:
        flows = _own_flows(client)
        ended, elsewhere, alive = [], [], 0
        runs = _runs(client, flows, FlowRunFilter(state=_state(LIVE)))
        running = runs_in_processes()  # after the runs: one that starts meanwhile must not look dead
        for run in runs:
            verdict = _judge(run, running, gone)
            if verdict.dead:
                if _end(client, run, verdict.reason):
                    ended.append(_swept(run, verdict.reason))
            elif verdict.unknown:
                elsewhere.append(_swept(run, verdict.reason))
            else:
                alive += 1
        return Sweep(ended=ended, restarted=_start_again(client, flows), alive=alive, elsewhere=elsewhere)


def sweep_lines(swept: Sweep) -> list[str]:
    """What a sweep did, for the terminal and the log; empty if it found nothing."""
    lines = [f"{run.name} ({run.id}): {run.what}" for run in (*swept.ended, *swept.restarted)]
    return lines + [f"{run.name} ({run.id}): not judged, {run.what}" for run in swept.elsewhere]


@dataclass(frozen=True, slots=True)
class _Verdict:
    reason: str
    dead: bool = False
    unknown: bool = False


def _judge(run: FlowRun, running: set[str], gone: Collection[str]) -> _Verdict:
    process = RunProcess.parse(run.labels.get(PROCESS))
    if process is not None:
        if process.machine in gone:
            return _Verdict(f"its machine {process.machine} is gone", dead=True)
        if not process.is_visible:
            return _Verdict(f"it runs on {process.machine} as user {process.user}; sweep there", unknown=True)
        return _Verdict(f"its process {process.pid} on {process.machine} is gone", dead=not process.is_alive())
    return _judge_unrecorded(run, running, gone)


def _judge_unrecorded(run: FlowRun, running: set[str], gone: Collection[str]) -> _Verdict:
    """A run that has not begun, or of a flow that does not record its process: by its worker, named after its machine."""
    worker = run.labels.get(WORKER)
    recorded = run.infrastructure_pid or ""
    pid = int(recorded) if recorded.isdecimal() else None
    starting = run.state is not None and run.state.is_pending() and pid is None
    recent = run.state is None or datetime.now(UTC) - run.state.timestamp < timedelta(seconds=PENDING_S)
    if worker in gone:
        return _Verdict(f"its machine {worker} is gone", dead=True)
    if starting and recent:
        return _Verdict("it is starting")
    if starting and worker is None:
        return _Verdict("no worker has started it", dead=True)
    if worker is None:
        return _Verdict("it recorded neither worker nor process", unknown=True)
    if worker != this_machine():
        return _Verdict(f"its worker {worker!r} does not have this machine's name, {this_machine()!r}", unknown=True)
    alive = str(run.id) in running or (pid is not None and not _is_readable(pid) and exists(pid))
    return _Verdict(f"its process on {worker} is gone", dead=not alive)


def _is_readable(pid: int) -> bool:
    """Whether the environment of a process can be read; that of other users cannot, nor any without /proc."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def _end(client: SyncPrefectClient, run: FlowRun, reason: str) -> bool:
    """Set the final state of a dead run, unless it had ended before its process did.

    The server rejects the change for a run in a final state; a run whose process is dead sets no other state.
    """
    cancelled = run.state is not None and run.state.is_cancelling()
    message = f"Found by the sweep on {this_machine()}: {reason}."
    state: State[None] = Cancelled(message=message) if cancelled else Crashed(message=message)
    if client.read_flow_run(run.id).state_type not in LIVE:
        return False
    client.set_flow_run_state(run.id, state)
    unfinished = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=LIVE)))
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task in client.read_task_runs(flow_run_filter=mine, task_run_filter=unfinished):
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
    return client.read_flow_run(run.id).state_type == state.type


def _start_again(client: SyncPrefectClient, flows: "list[UUID]") -> list[SweptRun]:
    earliest = datetime.now(UTC) - WITHIN
    since = FlowRunFilterEndTime(after_=earliest)
    crashed = [
        run
        for run in _runs(client, flows, FlowRunFilter(state=_state([StateType.CRASHED]), end_time=since))
        if run.deployment_id is not None and not (run.idempotency_key or "").startswith(RESTART)
    ]
    keys = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[_key(run) for run in crashed]))
    done = {run.idempotency_key for run in _runs(client, flows, keys)} if crashed else set()
    restarted = []
    for run in sorted(crashed, key=lambda run: run.created or earliest):
        if _key(run) in done or _has_successor(client, run) or _is_busy(client, run):
            continue
        if (new := _create(client, run)) is not None:
            restarted.append(_swept(run, f"started again as {new.name} ({new.id})", restart=str(new.id)))
    return restarted


def _is_busy(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether another run of the deployment is in progress: with a limit of one at a time, a new run would be cancelled."""
    assert run.deployment_id is not None
    deployment = DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id]))
    states = FlowRunFilter(state=_state([*LIVE, StateType.SCHEDULED]))
    found = _pages(
        lambda offset: client.read_flow_runs(deployment_filter=deployment, flow_run_filter=states, limit=PAGE, offset=offset)
    )
    return any(other.state_type in LIVE or (other.idempotency_key or "").startswith(RESTART) for other in found)


def _has_successor(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a later run of the deployment with the same parameters has started: it has done the work, or is doing it."""
    assert run.deployment_id is not None
    later = FlowRunFilter(
        start_time=FlowRunFilterStartTime(after_=run.start_time or run.created),
        state=_state([StateType.PENDING, StateType.RUNNING, StateType.COMPLETED]),
    )
    deployment = DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id]))
    found = client.read_flow_runs(deployment_filter=deployment, flow_run_filter=later, limit=PAGE)
    return any(other.parameters == run.parameters and other.id != run.id for other in found)


def _create(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    assert run.deployment_id is not None
    try:
        return client.create_flow_run_from_deployment(
            run.deployment_id,
            parameters=run.parameters,
            idempotency_key=_key(run),
            tags=run.tags,
            work_queue_name=run.work_queue_name,
            job_variables=run.job_variables,
        )
    except ObjectNotFound:  # the deployment was deleted
        return None


def _key(run: FlowRun) -> str:
    return f"{RESTART}{run.id}"


def _swept(run: FlowRun, what: str, restart: str | None = None) -> SweptRun:
    return SweptRun(id=str(run.id), name=run.name, what=what, restart=restart)


def _own_flows(client: SyncPrefectClient) -> "list[UUID]":
    found = client.read_flows(flow_filter=FlowFilter(name=FlowFilterName(like_="edgeline")), limit=PAGE)
    return [flow.id for flow in found if flow.name == "edgeline" or flow.name.startswith("edgeline-")]


def _runs(client: SyncPrefectClient, flows: "list[UUID]", wanted: FlowRunFilter) -> list[FlowRun]:
    if not flows:
        return []
    of = FlowFilter(id=FlowFilterId(any_=flows))
    return _pages(lambda offset: client.read_flow_runs(flow_filter=of, flow_run_filter=wanted, limit=PAGE, offset=offset))


def _pages(read: Callable[[int], list[FlowRun]]) -> list[FlowRun]:
    found: list[FlowRun] = []
    while len(page := read(len(found))) == PAGE:
        found += page
    return found + page


def _state(types: list[StateType]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=types))


@contextmanager
def _connected() -> Iterator[SyncPrefectClient]:
    url = configured_url()
    if url is None:
        raise ConfigError("no Prefect server is configured; set PREFECT_API_URL, such as http://127.0.0.1:4200/api")
    server = check_server(url)
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise EdgelineError(f"the Prefect server {server} cannot be used: {reason}", code="prefect_unreachable") from error
