"""An embedded Prefect server, used if none is configured. It ends with the process that started it.

    with EmbeddedServer(Path("artifacts/prefect")) as server, server.settings():
        import ...                      # the server starts in the meantime
        server.wait()
        flow()

It has its own database and settings, and neither reads nor changes the user's. It listens on 127.0.0.1 only, accepts only
requests with a password generated for this start, has no UI, runs no schedules and sends no telemetry.

The socket is opened here and inherited by the server, so the port is known at once, no other process can take it, and a
request sent before the server is up waits for it.
"""

import base64
import fcntl
import http.client
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeline.serve.errors import EdgelineError
from edgeline.serve.terminal import printable

HOST = "127.0.0.1"
LOG_NAME = "server.log"
LOCK_NAME = ".start.lock"
START_S = 180.0
"""Timeout of a start. The first one migrates the database: 11 s on two idle cores, ten times as long on busy ones."""
STOP_S = 10.0
DRAIN_S = 10.0

# By default each event with a task state is a transaction of its own: slow, and lost with a traceback at exit.
BATCHES = {
    f"PREFECT_SERVER_SERVICES_{service}_{setting}": value
    for service in ("TASK_RUN_RECORDER", "EVENT_PERSISTER")
    for setting, value in (("BATCH_SIZE", "200"), ("READ_BATCH_SIZE", "50"), ("FLUSH_INTERVAL", "1.0"))
}
SETTINGS = BATCHES | {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Relative to the server's working folder, because Prefect's default puts the path of its home into the URL as it is: one
    # with ?, # or % in it would be cut or changed.
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///prefect.db",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}


class EmbeddedServer:
    """A Prefect server in a child process; entering starts it, leaving stops it."""

    def __init__(self, home: Path) -> None:
        """Create a server that is not started yet.

        Args:
            home: folder for its database and log; created if missing.
        """
        self.home = home.absolute()
        self._password = f"edgeline:{secrets.token_urlsafe(16)}"

    @property
    def url(self) -> str:
        """The URL of its API."""
        return f"http://{HOST}:{self.port}/api"

    @property
    def log(self) -> Path:
        """The log file of the server."""
        return self.home / LOG_NAME

    def __enter__(self) -> Self:
        """Start the process without waiting for it.

        Raises:
            EdgelineError: it cannot be started.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with ExitStack() as lock:
                lock.enter_context(_start_lock(self.home / LOCK_NAME))
                self._start()
                self._lock = lock.pop_all()
        except OSError as error:
            raise self._failure(str(error)) from error
        return self

    def _start(self) -> None:
        with socket.create_server((HOST, 0)) as listener, self.log.open("ab") as log:
            log.truncate(0)
            self.port: int = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("embedded_process.py")), str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(),),
                env=self.environment(),
                cwd=self.home,  # Prefect reads settings from files in the working folder
                start_new_session=True,  # so that Ctrl-C stops this process first, and the end of the run is still recorded
            )

    def wait(self) -> None:
        """Wait until the server responds; then others may start in the same folder.

        Raises:
            EdgelineError: it died, or does not respond in time.
        """
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_S)
        try:
            connection.request("GET", "/api/admin/version", headers={"Authorization": self._authorization()})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(self._exit_reason() or f"{type(error).__name__} {error}".strip()) from error
        finally:
            connection.close()
        if status != http.client.OK:
            raise self._failure(f"status {status} from {self.url}")
        self._lock.close()

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Make Prefect in this process a client of the server, regardless of the user's settings.

        Leaving sends pending events to the server, which include the states of tasks.
        """
        from prefect.events.worker import EventsWorker
        from prefect.settings import (
            PREFECT_API_AUTH_STRING,
            PREFECT_API_KEY,
            PREFECT_API_URL,
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            PREFECT_HOME,
            PREFECT_LOGGING_TO_API_ENABLED,
            PREFECT_SERVER_ANALYTICS_ENABLED,
            temporary_settings,
        )

        values = {
            PREFECT_API_URL: self.url,
            PREFECT_API_AUTH_STRING: self._password,
            PREFECT_API_KEY: None,  # has precedence over the password
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread delays the end of each flow by a second
            PREFECT_HOME: self.home,
            PREFECT_LOGGING_TO_API_ENABLED: False,
            PREFECT_SERVER_ANALYTICS_ENABLED: False,
        }
        with temporary_settings(values), _no_proxy():
            try:
                yield
            finally:
                # On a busy machine it would print how many events are left.
                logging.getLogger(EventsWorker.__name__).setLevel(logging.ERROR)
                EventsWorker.drain_all(timeout=DRAIN_S)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the process by closing its standard input."""
        self._lock.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def environment(self) -> dict[str, str]:
        """The environment variables of its process: this process's, without settings of Prefect, plus its own."""
        own = {"PREFECT_HOME": str(self.home), "PREFECT_SERVER_API_AUTH_STRING": self._password}
        return {key: value for key, value in os.environ.items() if not key.upper().startswith("PREFECT_")} | SETTINGS | own

    def _authorization(self) -> str:
        return "Basic " + base64.b64encode(self._password.encode()).decode()

    def _exit_reason(self) -> str:
        """Why it died, from its log; empty if it is running."""
        try:
            self.process.wait(10)  # it closed the connection, so it is about to end
        except subprocess.TimeoutExpired:
            return ""
        text = self.log.read_text(errors="replace")
        errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*", text, re.MULTILINE) or text.split("\n")
        last = next((line.strip() for line in reversed(errors) if line.strip()), "no output")
        return f"exit code {self.process.returncode}: {last[:300]} (more in {self.log})"

    def _failure(self, reason: str) -> EdgelineError:
        return EdgelineError(
            f"the embedded Prefect server did not start: {reason}; use --no-prefect, or delete its folder {self.home}, "
            "which contains nothing else",
            code="prefect_failed",
        )


@contextmanager
def _start_lock(path: Path) -> Iterator[None]:
    """Wait until no other server starts in this folder: two that migrate one database at the same time break each other.

    The lock ends with its process, so it cannot become stale.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"edgeline: waiting for another run that is starting Prefect in {path.parent}"
            print(printable(message), file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _no_proxy() -> Iterator[None]:
    """Exclude this machine from the proxy of the environment.

    Prefect's client cannot be created with a SOCKS proxy in the environment, used or not, unless its package is installed.
    """
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")  # the lower-case variable has precedence
    os.environ["no_proxy"] = ",".join(filter(None, (no_proxy, HOST)))
    for name, value in proxies.items():
        if value.startswith("socks") and find_spec("socksio") is None:
            del os.environ[name]
    try:
        yield
    finally:
        del os.environ["no_proxy"]
        os.environ.update(proxies)
