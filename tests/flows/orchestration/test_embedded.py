import asyncio
import fcntl
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeline.flows.orchestration.embedded import LOCK_NAME, EmbeddedServer
from edgeline.serve.errors import EdgelineError
from tests.support.cases import cases

DEADLINE_S = 60
PARENT = """
import sys
from pathlib import Path
from edgeline.flows.orchestration.embedded import LOCK_NAME, EmbeddedServer

with EmbeddedServer(Path(sys.argv[1])) as server:
    if sys.argv[2] == "serving":
        server.wait()
    print(server.process.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def parent_of_a_server(home: Path, moment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    command = [sys.executable, "-c", PARENT, str(home), moment]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        try:
            yield parent, int(parent.stdout.readline())
        finally:
            parent.kill()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one stays in the process table until its new parent waits for it."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


ENDS = {
    f"{signum.name}-{moment}": (signum, moment)
    for signum in (signal.SIGKILL, signal.SIGTERM)
    for moment in ("serving", "starting")
}


@pytest.mark.parametrize(("signum", "moment"), cases(ENDS, quick=["SIGKILL-starting"]))
def test_the_server_ends_when_its_parent_is_killed(
    migrated_home: Callable[[], Path], wait_for: Any, signum: signal.Signals, moment: str
) -> None:
    with parent_of_a_server(migrated_home(), moment) as (parent, server):
        assert is_alive(server)
        parent.send_signal(signum)
        assert parent.wait(10) == -signum
        wait_for(lambda: not is_alive(server), 10)


@pytest.mark.long
def test_stopping_the_server_loses_no_task_run(migrated_home: Callable[[], Path]) -> None:
    from prefect import flow, task

    @task
    def double(number: int) -> int:
        return 2 * number

    @flow
    def doubles() -> int:
        return sum(double(number) for number in range(6))

    with EmbeddedServer(migrated_home()) as server:
        server.wait()
        with server.settings():
            assert doubles() == 30
    assert server.process.returncode == 0
    with closing(sqlite3.connect(server.home / "prefect.db")) as database:
        states = [state for (state,) in database.execute("SELECT state_name FROM task_run")]
    assert states == ["Completed"] * 6


def test_a_start_waits_for_another_one_in_the_same_folder_and_reports_it(
    tmp_path: Path, wait_for: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """F8: two that migrate a new database at the same time fail with NoSuchTableError."""
    server, printed = EmbeddedServer(tmp_path), []

    def start_and_stop() -> None:
        with server:
            pass

    with (tmp_path / LOCK_NAME).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threading.Thread(target=start_and_stop)
        second.start()
        wait_for(lambda: printed.append(capfd.readouterr().err) or "".join(printed))
        assert "".join(printed) == f"edgeline: waiting for another run that is starting Prefect in {tmp_path}\n"
        assert not hasattr(server, "process")
    second.join(DEADLINE_S)
    assert server.process.poll() is not None


def test_the_start_of_a_killed_process_blocks_no_other(
    migrated_home: Callable[[], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """F8."""
    home = migrated_home()
    with parent_of_a_server(home, "starting") as (parent, _), (home / LOCK_NAME).open("a") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        parent.kill()
        parent.wait()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert capfd.readouterr().err == ""


def test_others_may_start_once_the_server_responds(prefect_server: EmbeddedServer) -> None:
    """F8: the lock is not held for the whole run."""
    with (prefect_server.home / LOCK_NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_database_is_in_the_folder_whatever_its_name_is(prefect_server: EmbeddedServer) -> None:
    """F19."""
    home = prefect_server.home
    assert set("?#% '\"é~") <= set(home.name)
    assert (home / "prefect.db-wal").exists()  # of an open database
    assert list(home.parent.iterdir()) == [home]


def test_a_request_without_the_password_is_unauthorized(prefect_server: EmbeddedServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{prefect_server.url}/admin/version", timeout=10)
    with caught.value:
        assert caught.value.code == 401


def test_the_server_listens_on_the_loopback_address_only(prefect_server: EmbeddedServer) -> None:
    assert prefect_server.url.startswith("http://127.0.0.1:")


@pytest.mark.long
def test_the_error_after_a_server_dies_has_the_reason_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_bytes(b"no database" * 1000)
    with (
        EmbeddedServer(tmp_path) as server,
        pytest.raises(EdgelineError, match="file is not a database.*--no-prefect") as failure,
    ):
        server.wait()
    assert failure.value.code == "prefect_failed"
    assert "\n" not in str(failure.value)
    assert str(server.log) in str(failure.value)


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgelineError, match="Not a directory.*--no-prefect"):
        EmbeddedServer(tmp_path / "file" / "prefect").__enter__()


def test_the_settings_of_the_user_are_neither_read_nor_changed(
    prefect_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://nowhere/none")
    assert prefect_server.environment()["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "sqlite+aiosqlite:///prefect.db"
    with temporary_settings({PREFECT_API_URL: "http://theirs/api", PREFECT_API_KEY: "secret"}):
        with prefect_server.settings():
            assert (PREFECT_API_URL.value(), PREFECT_API_KEY.value()) == (prefect_server.url, None)
            assert PREFECT_HOME.value() == prefect_server.home
        assert PREFECT_API_URL.value() == "http://theirs/api"


@pytest.mark.parametrize("before", [None, "example.org"])
def test_requests_to_this_machine_bypass_the_proxy(
    prefect_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv("no_proxy", before)
    with prefect_server.settings():
        assert urllib.request.proxy_bypass_environment("127.0.0.1")
        assert bool(urllib.request.proxy_bypass_environment("example.org")) == bool(before)
    assert os.environ.get("no_proxy") == before


@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"], ids=lambda name: f"F15-{name}")
def test_a_socks_proxy_does_not_stop_a_run_that_needs_none(
    prefect_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Even if it is not used, the client needs a package for it that is not installed here."""
    import httpx
    from prefect.client.orchestration import get_client

    monkeypatch.setenv(variable, "socks5h://127.0.0.1:1080")
    with pytest.raises(ImportError, match="socksio"):
        httpx.Client()
    with prefect_server.settings(), get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None
    assert os.environ[variable] == "socks5h://127.0.0.1:1080"


def test_pending_states_are_sent_silently_at_the_end(
    prefect_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.utilities import emit_event

    sent: list[str] = []

    async def slowly(client: PrefectEventsClient, event: Any) -> None:
        await asyncio.sleep(0.2)
        sent.append(event.event)

    monkeypatch.setattr(PrefectEventsClient, "_emit", slowly)
    with prefect_server.settings():
        for number in range(4):
            emit_event(f"step.{number}", {"prefect.resource.id": "edgeline.test"})
    assert sent == ["step.0", "step.1", "step.2", "step.3"]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
