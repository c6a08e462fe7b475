import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgeline.flows.up import supervisor as supervisors
from edgeline.flows.up.guard import end_marked, marked
from edgeline.flows.up.services import Service
from edgeline.flows.up.supervisor import State, Supervisor

SLEEP = "import time; print('up', flush=True); time.sleep(300)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
WITH_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(300)'], start_new_session=True)\n"
    "print('up', flush=True); time.sleep(300)"
)
PARENT = """
import sys, time
from pathlib import Path
from edgeline.flows.up.services import Service
from edgeline.flows.up.supervisor import State, Supervisor

service = Service(
    name="one", command=lambda: [sys.executable, "-S", "-c", sys.argv[2]], environment={}, is_ready=lambda log: "up" in log
)
with Supervisor(services=[service], home=Path(sys.argv[1])) as supervisor:
    while supervisor.running[0].state is not State.READY:
        supervisor.step()
        time.sleep(0.02)
    print("ready", flush=True)
    sys.stdin.read()
"""


def service(name: str, script: str = SLEEP, **more: Any) -> Service:
    return Service(
        name=name,
        command=lambda: [sys.executable, "-S", "-c", script],
        environment=dict(os.environ),
        is_ready=lambda log: "up" in log,
        **more,
    )


@contextmanager
def supervised(home: Path, *services: Service) -> Iterator[Supervisor]:
    with Supervisor(services=services, home=home) as supervisor:
        yield supervisor
    assert [pid for each in services for pid in marked(f"{home}:{each.name}")] == []


def states(supervisor: Supervisor) -> list[State]:
    return [each.state for each in supervisor.running]


def reaches(supervisor: Supervisor, *wanted: State) -> Callable[[], bool]:
    """Let the services go on, and return whether they are in these states."""

    def ask() -> bool:
        supervisor.step()
        return states(supervisor) == list(wanted)

    return ask


def pid_of(home: Path, name: str, text: bytes) -> int:
    """The service's own process: the marked one with this in its command line."""
    [pid] = [pid for pid in marked(f"{home}:{name}") if text in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


def test_services_start_in_order_and_stop_in_reverse(tmp_path: Path, wait_for: Any) -> None:
    with supervised(tmp_path, service("first"), service("second", after=("first",))) as supervisor:
        supervisor.step()
        assert states(supervisor) == [State.STARTING, State.WAITING]
        assert supervisor.running[1].detail == "for first"
        wait_for(reaches(supervisor, State.READY, State.READY))
        stopped = []
        while not supervisor.stop_step():
            stopped.append(tuple(states(supervisor)))
        assert list(dict.fromkeys(stopped)) == [
            (State.READY, State.STOPPING),
            (State.READY, State.STOPPED),
            (State.STOPPING, State.STOPPED),
            (State.STOPPED, State.STOPPED),
        ]


def test_a_service_that_dies_is_started_again_after_a_growing_delay(
    tmp_path: Path, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "FIRST_DELAY_S", 0.05)
    with supervised(tmp_path, service("fails", "raise SystemExit('no luck')")) as supervisor:
        supervisor.running[0].delay_s = 0.05
        delays = set()

        def third_restart() -> bool:
            supervisor.step()
            delays.add(supervisor.running[0].delay_s)
            return supervisor.running[0].restarts == 3

        wait_for(third_restart)
        assert delays == {0.05, 0.1, 0.2, 0.4}
        assert supervisor.running[0].detail == "exit code 1: no luck; again in 0 s"


def test_a_killed_service_comes_back_and_its_orphans_are_gone(tmp_path: Path, wait_for: Any) -> None:
    with supervised(tmp_path, service("one", WITH_CHILD)) as supervisor:
        wait_for(reaches(supervisor, State.READY))
        before = set(marked(f"{tmp_path}:one"))
        assert len(before) == 2
        os.kill(pid_of(tmp_path, "one", b"subprocess"), signal.SIGKILL)
        wait_for(reaches(supervisor, State.DIED))
        assert supervisor.running[0].detail.startswith("killed by SIGKILL")
        supervisor.running[0].again_at = 0
        wait_for(reaches(supervisor, State.READY))
        assert not before & set(marked(f"{tmp_path}:one"))


def test_the_run_of_a_killed_worker_is_spared(tmp_path: Path) -> None:
    environment = os.environ | {"EDGELINE_UP": str(tmp_path), "PREFECT__FLOW_RUN_ID": "1"}
    with subprocess.Popen([sys.executable, "-S", "-c", SLEEP], env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        end_marked(str(tmp_path), spare_runs=True)
        assert run.poll() is None
        end_marked(str(tmp_path))
        assert run.wait(10) == -signal.SIGKILL


def test_a_service_that_ignores_sigterm_is_killed(tmp_path: Path, wait_for: Any) -> None:
    with supervised(tmp_path, service("stubborn", STUBBORN, stop_s=0.1)) as supervisor:
        wait_for(reaches(supervisor, State.READY))


def test_a_service_waits_for_what_it_needs(tmp_path: Path, wait_for: Any) -> None:
    needed = tmp_path / "needed"
    waiting = service("late", waits_for=lambda: None if needed.exists() else "a file")
    with supervised(tmp_path, waiting) as supervisor:
        supervisor.step()
        assert (states(supervisor), supervisor.running[0].detail) == ([State.WAITING], "for a file")
        needed.touch()
        wait_for(reaches(supervisor, State.READY))


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path, wait_for: Any) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), WITH_CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == b"ready\n"
            assert len(marked(f"{tmp_path}:one")) == 2
            parent.kill()
            parent.wait(10)
            wait_for(lambda: not marked(f"{tmp_path}:one"))
        finally:
            with suppress(ProcessLookupError):
                parent.kill()
