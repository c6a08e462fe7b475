"""Run all services until a signal to stop, and report what prevents that before anything is started."""

import errno
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from edgeline.flows.extras import EXTRAS
from edgeline.flows.up.display import Show, display
from edgeline.flows.up.services import HOST, UpOptions, services
from edgeline.flows.up.supervisor import Supervisor
from edgeline.serve.errors import ConfigError, MissingExtraError

NEEDED = ("prefect", "starlette")
"""Packages without which a service could not start."""
LOCK = "up.lock"
STEP_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(options: UpOptions) -> None:
    """Start all services, keep them running, and stop them in reverse order on SIGINT, SIGTERM or SIGHUP.

    A second signal kills what is still stopping. If this process is killed, the services end too.

    Raises:
        ConfigError: a port is in use, or another `edgeline up` runs in the folder.
        MissingExtraError: a service needs a package that is not installed.
        OSError: the folder cannot be used.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise MissingExtraError(package, EXTRAS[package])
    signals = _Signals()
    with locked(options), signals.caught():
        check_port(HOST, options.prefect_port, "--prefect-port")
        check_port(options.host, options.port, "--port")
        with display(_notes(options)) as show, Supervisor(services=services(options), home=options.home) as supervisor:
            while not signals.wait(STEP_S):
                supervisor.step()
                show(supervisor.running)
            _stop(supervisor, signals, show)


def check_port(host: str, port: int, option: str) -> None:
    """Return if a port can be listened on.

    Raises:
        ConfigError: it cannot.
    """
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use" if in_use else f"cannot be listened on ({error})"
        raise ConfigError(
            f"port {port} on {host} {reason}; stop the program that uses it, or choose another with {option}"
        ) from error


def _stop(supervisor: Supervisor, signals: "_Signals", show: Show) -> None:
    done = False
    while not done:
        done = supervisor.stop_step(now=signals.count > 1)
        show(supervisor.running)
        signals.pause(0.05)


def _notes(options: UpOptions) -> list[str]:
    notes = [
        f"For other commands:  export PREFECT_API_URL={options.prefect_url}/api",
        f"Logs are in {options.home}. Ctrl-C stops everything.",
    ]
    other = os.environ.get("PREFECT_API_URL")
    if other and other.rstrip("/") != f"{options.prefect_url}/api":
        notes.append("PREFECT_API_URL is set to another server; the worker and the sweep started here do not use it.")
    return notes


@contextmanager
def locked(options: UpOptions) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process; the file has its id."""
    options.home.mkdir(parents=True, exist_ok=True)
    path = options.home / LOCK
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = path.read_text(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"edgeline up already runs in {options.home} as process {other}; stop it (kill {other}), or choose another "
                "folder with --artifacts and other ports"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class _Signals:
    """Counts signals to stop."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = threading.Event()

    @contextmanager
    def caught(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait for the first signal; return whether it has arrived."""
        return self._stop.wait(seconds)

    def pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._stop.set()
