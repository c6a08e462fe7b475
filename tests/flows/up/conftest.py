"""A real `edgeline up` for long tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from edgeline.flows.up.guard import marked

START_S = 180
MAIN = [sys.executable, "-c", "from edgeline.flows.cli.main import main; main()"]


class Up:
    """A running `edgeline up`."""

    def __init__(self, artifacts: Path, process: "subprocess.Popen[bytes]", ports: tuple[int, int]) -> None:
        self.artifacts, self.process = artifacts, process
        self.api, self.models = f"http://127.0.0.1:{ports[0]}/api", f"http://127.0.0.1:{ports[1]}"

    @property
    def lines(self) -> list[str]:
        """What it has printed."""
        return (self.artifacts / "up.txt").read_text().splitlines()

    def is_ready(self, *names: str) -> bool:
        """Whether the last line of each of these services reports that it is ready."""
        assert self.process.poll() is None, self.lines
        last = {line.partition(":")[0]: line for line in self.lines}
        return all(last.get(name, "").startswith(f"{name}: ready") for name in names)

    def pid(self, name: str, text: str) -> int:
        """The process of a service, by a part of its command line; not its guard's."""
        [pid] = [pid for pid in self.pids(name) if text in command_of(pid) and "guard.py" not in command_of(pid)]
        return pid

    def pids(self, name: str) -> list[int]:
        """The processes of a service."""
        return marked(f"{self.artifacts / 'up'}:{name}")

    def all_pids(self) -> list[int]:
        """The processes of all services."""
        return [pid for name in ("prefect", "worker", "sweep", "models") for pid in self.pids(name)]


def command_of(pid: int) -> str:
    """The command line of a process; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return int(holder.getsockname()[1])


@contextmanager
def up_in(artifacts: Path, database: Path | None, settings: dict[str, str] | None = None) -> Iterator[Up]:
    """`edgeline up` in a folder; with a migrated database, if one is given and exists, and these environment variables."""
    home = artifacts / "up" / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    if database is not None and database.exists():
        shutil.copy(database, home)
    ports = free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | (settings or {})
    command = [*MAIN, "up", "--artifacts", str(artifacts), "--prefect-port", str(ports[0]), "--port", str(ports[1])]
    with (artifacts / "up.txt").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    up = Up(artifacts, process, ports)
    try:
        yield up
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest) -> Path:
    """Where the tests of orchestration keep a migrated database."""
    assert request.config.cache is not None
    return request.config.cache.mkdir(f"prefect-{version('prefect')}") / "prefect.db"


@contextmanager
def client_of(up: Up) -> Iterator[SyncPrefectClient]:
    """Make this process a client of its Prefect server."""
    settings = {PREFECT_API_URL: up.api, PREFECT_API_AUTH_STRING: None, PREFECT_HOME: up.artifacts / "client"}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, database: Path, wait_for: Callable[..., Any]) -> Iterator[Up]:
    """An `edgeline up` in an empty folder, ready but for a first version."""
    with up_in(tmp_path_factory.mktemp("artifacts"), database) as up:
        wait_for(lambda: up.is_ready("prefect", "worker", "sweep"), START_S)
        yield up
