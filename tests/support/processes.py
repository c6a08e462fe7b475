"""`edgeline serve` as a process, for the tests of signals, options, memory and addresses."""

import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20
HTTP = httpx.Client(verify=False, timeout=DEADLINE_S, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))
"""For plain HTTP, a connection for each request. `httpx.get` would also load all certificates each time, for 50 ms."""
MAIN = [sys.executable, "-c", "from edgeline.flows.cli.main import main; main()"]


def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


@contextlib.contextmanager
def started(
    artifact: Path, *options: str, main: list[str] = MAIN, scheme: str = "http"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `edgeline serve --port 0` and yield the process and its URL; killed at the end if it still runs."""
    plan = [] if "--threads" in options or "--cache" in options else ["--runners", "2"]  # nothing to be measured
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        if "--cache" not in options:  # a test must not write to the user's cache
            options = "--cache", stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)), *options
        command = [*main, "serve", str(artifact), "--port", "0", *plan, *options]
        process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
        try:
            found = re.search(rf"{scheme}://\S+", line_of(process.stdout))
            assert found, process.stderr.read() if process.stderr else ""
            yield process, found[0]
        finally:
            if process.poll() is None:
                process.kill()


def connect(url: str) -> socket.socket:
    parts = httpx.URL(url)
    return socket.create_connection((parts.host, parts.port or 0), timeout=DEADLINE_S)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while HTTP.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_accepting(url: str) -> bool:
    try:
        connect(url).close()
    except OSError:
        return False
    return True


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))
