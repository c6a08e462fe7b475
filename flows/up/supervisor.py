"""Keep services running: start them in order, restart what dies with a growing delay, and stop them in reverse order.

    with Supervisor(services, home) as supervisor:
        while not stopped:
            supervisor.step()

Each service has a guard (`flows.up.guard`) that ends it with this process. All of it is driven by `step`, in one thread.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeline.flows.up.guard import KILL_S, end_marked
from edgeline.flows.up.services import Service

GUARD = Path(__file__).with_name("guard.py")
FIRST_DELAY_S, LAST_DELAY_S = 1.0, 60.0
"""Of a restart; doubled for each one until the service has been ready for `STEADY_S`."""
STEADY_S = 10.0
PROBE_EVERY_S = 5.0
TAIL = 20_000


class State(StrEnum):
    """What a service is doing, as it is shown."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNRESPONSIVE = "not responding"
    DIED = "died"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(kw_only=True, slots=True)
class Running:
    """A service and its current process."""

    service: Service
    log: Path
    state: State = State.WAITING
    detail: str = ""
    """For a person: what is waited for, or why it died."""
    restarts: int = 0
    process: subprocess.Popen[bytes] | None = None
    """Its guard."""
    log_start: int = 0
    ready_at: float | None = None
    probed_at: float = 0.0
    delay_s: float = FIRST_DELAY_S
    again_at: float = 0.0


@dataclass(kw_only=True, slots=True)
class Supervisor:
    """The services of one `edgeline up`; entering starts nothing, leaving stops all."""

    services: Sequence[Service]
    home: Path
    """Folder of the logs; the services work in `prefect/` below it."""
    running: list[Running] = field(init=False)

    def __post_init__(self) -> None:
        self.running = [Running(service=each, log=self.home / f"{each.name}.log") for each in self.services]

    def __enter__(self) -> Self:
        """Create the folders."""
        (self.home / "prefect").mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop what still runs."""
        while not self.stop_step():
            time.sleep(0.05)

    def step(self) -> None:
        """Start, check and restart what is due."""
        for each in self.running:
            if each.process is None:
                self._start_if_due(each)
            elif each.process.poll() is not None:
                self._note_death(each)
            else:
                self._probe(each)

    def stop_step(self, *, now: bool = False) -> bool:
        """Stop the last service that runs; to be called until it returns True: all have stopped.

        Args:
            now: kill all of them instead of waiting.
        """
        for each in reversed(self.running):
            if each.process is None:
                each.state, each.detail = State.STOPPED, ""
                continue
            if now:
                each.process.kill()
                each.process.wait()
            elif each.state is not State.STOPPING:
                assert each.process.stdin is not None
                each.process.stdin.close()
                each.state, each.detail = State.STOPPING, ""
                each.again_at = time.monotonic() + each.service.stop_s + 2 * KILL_S
            if each.process.poll() is None and time.monotonic() < each.again_at:
                return False
            self._release(each, spare_runs=False)
            each.state = State.STOPPED
            if not now:
                return False
        return all(each.process is None for each in self.running)

    def _start_if_due(self, each: Running) -> None:
        if time.monotonic() < each.again_at:
            return
        states = {other.service.name: other.state for other in self.running}
        missing = next((name for name in each.service.after if states[name] is not State.READY), None)
        missing = None if each.restarts else missing  # what has run before reconnects by itself
        reason = missing or each.service.waits_for()
        if reason is not None:
            each.state, each.detail = State.WAITING, f"for {reason}"
            each.again_at = time.monotonic() + 0.5
            return
        with each.log.open("ab") as log:
            each.log_start = log.tell()
            each.process = subprocess.Popen(
                [sys.executable, "-P", str(GUARD), str(each.service.stop_s), self._mark(each), *each.service.command()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(each.service.environment),
                cwd=self.home / "prefect",  # Prefect reads settings from files in the working folder
                start_new_session=True,  # so that Ctrl-C reaches only this process, which stops them in order
            )
        each.state, each.detail, each.ready_at = State.STARTING, "", None

    def _note_death(self, each: Running) -> None:
        assert each.process is not None
        reason = self._reason(each, each.process.returncode)
        if each.ready_at is not None and time.monotonic() - each.ready_at > STEADY_S:
            each.delay_s = FIRST_DELAY_S
        each.state, each.again_at = State.DIED, time.monotonic() + each.delay_s
        each.detail = f"{reason}; again in {each.delay_s:.0f} s"
        each.delay_s = min(2 * each.delay_s, LAST_DELAY_S)
        each.restarts += 1
        self._release(each, spare_runs=True)

    def _release(self, each: Running, *, spare_runs: bool) -> None:
        """Forget the process, and end what it has left behind, such as the child that holds its port."""
        assert each.process is not None
        if each.process.stdin is not None:
            each.process.stdin.close()
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        each.process = None
        end_marked(self._mark(each), spare_runs=spare_runs)

    def _probe(self, each: Running) -> None:
        now = time.monotonic()
        if each.state is not State.STARTING and now - each.probed_at < PROBE_EVERY_S:
            return
        each.probed_at = now
        if each.service.is_ready(self._log(each)):
            each.state, each.detail, each.ready_at = State.READY, "", each.ready_at or now
        elif each.state is State.READY:
            each.state = State.UNRESPONSIVE

    def _log(self, each: Running) -> str:
        with each.log.open("rb") as file:
            file.seek(each.log_start)
            return file.read(TAIL).decode(errors="replace")

    def _reason(self, each: Running, code: int) -> str:
        number = -code if code < 0 else code - 128
        if number in set(signal.Signals):
            return f"killed by {signal.Signals(number).name}"
        with each.log.open("rb") as file:
            file.seek(max(each.log_start, os.fstat(file.fileno()).st_size - TAIL))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return f"exit code {code}: {lines[-1][:200] if lines else f'nothing in {each.log}'}"

    def _mark(self, each: Running) -> str:
        return f"{self.home}:{each.service.name}"
