"""`edgeline serve` as a process: signals, addresses, memory."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.errors import ConfigError
from edgeline.serve.http.transport.server import accept_rest, is_exposed, listen, url_of
from tests.support.cases import cases
from tests.support.processes import (
    DEADLINE_S,
    HTTP,
    ROOT,
    connect,
    is_accepting,
    line_of,
    read_all,
    started,
    wait_until_ready,
)

Run = Callable[..., tuple[int, str, str]]


SIGNALS = {number.name: number for number in (signal.SIGTERM, signal.SIGINT)}


@pytest.mark.parametrize("number", cases(SIGNALS, quick=["SIGTERM"]))
def test_a_signal_ends_it_with_code_0_after_the_accepted_request(artifact_template: Path, number: signal.Signals) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(photo)
    with started(artifact_template) as (process, url):
        wait_until_ready(url)
        with connect(url) as connection, connect(url):  # the second one stays silent
            connection.sendall(head + photo[:100])
            assert HTTP.get(f"{url}/healthz").status_code == 200  # the loop has seen the head by now
            process.send_signal(number)
            deadline = time.monotonic() + DEADLINE_S
            while is_accepting(url):
                assert time.monotonic() < deadline
            connection.sendall(photo[100:])
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b'"label":"red"' in answer
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        log = process.stderr.read()
        assert "Traceback" not in log
        assert "authentication" not in log  # only this machine reaches it


def test_a_signal_right_after_the_address_is_printed_ends_it_with_code_0(artifact_template: Path) -> None:
    with started(artifact_template) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_connections_during_shutdown_are_accepted_or_never_made() -> None:
    with listen("127.0.0.1", 0) as listener, contextlib.ExitStack() as stack:
        listener.setblocking(False)
        for _ in range(3):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        assert len([stack.enter_context(each) for each in accept_rest(listener)]) == 3
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.1)


def test_a_stuck_client_is_disconnected_after_the_grace_period(artifact_template: Path) -> None:
    with started(artifact_template, "--grace", "1") as (process, url):
        wait_until_ready(url)
        with connect(url) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
            assert HTTP.get(f"{url}/healthz").status_code == 200
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
            assert time.monotonic() - start < 14  # `body_s` would end it after 15


STUCK = """
import threading
from edgeline.serve.http import main as serving
from edgeline.serve.classifier import Classifier

def pixels(*_):
    print("stuck", flush=True)
    threading.Event().wait()

Classifier.pixels, serving.CLOSE_S = pixels, 0.2
from edgeline.flows.cli.main import main; main()
"""


def test_a_stuck_decoder_does_not_keep_the_process_alive(artifact_template: Path) -> None:
    with started(artifact_template, "--grace", "1", main=[sys.executable, "-c", STUCK]) as (process, url):
        wait_until_ready(url)
        with connect(url) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
            assert line_of(process.stdout) == "stuck\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 1
            assert "did not end in the grace period" in (process.stderr.read() if process.stderr else "")


def test_a_missing_artifact_leaves_the_server_alive_with_the_reason(tmp_path: Path) -> None:
    with started(tmp_path / "absent") as (process, url):
        deadline = time.monotonic() + DEADLINE_S
        while (reply := HTTP.get(f"{url}/readyz")).json()["code"] == "loading":
            assert time.monotonic() < deadline
        assert (reply.status_code, reply.json()["code"]) == (503, "artifact_invalid")
        assert "no artifact at absent" in reply.json()["error"]
        assert HTTP.get(f"{url}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert "no artifact at" in (process.stderr.read() if process.stderr else "")


def test_the_artifacts_own_store_is_offered_for_download(artifact_template: Path) -> None:
    with started(artifact_template.parent) as (_, url):
        assert HTTP.get(f"{url}/artifacts").json()["artifacts"] == [
            {"name": "colors", "versions": [1], "latest": 1, "channels": {"stable": 1}}
        ]


def test_limits_and_another_store_can_be_set(artifact_template: Path, tmp_path: Path) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    limits = ("--max-pixels", "1000", "--max-bytes", "5000", "--threads", "1")
    with started(artifact_template, *limits, "--store", str(tmp_path)) as (_, url):
        wait_until_ready(url)
        assert HTTP.post(f"{url}/predict", content=photo).json()["code"] == "image_too_large"
        assert HTTP.post(f"{url}/predict", content=bytes(5001)).json()["code"] == "body_too_large"
        assert HTTP.get(f"{url}/artifacts").json() == {"artifacts": []}


def test_listening_to_other_machines_prints_one_warning(artifact_template: Path) -> None:
    with started(artifact_template, "--host", "0.0.0.0", "--metrics-port", "0") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        warning, *_ = (process.stderr.read() if process.stderr else "").splitlines()
        assert re.fullmatch(
            r"edgeline: http://0\.0\.0\.0:\d+ can be reached from other machines, and has no authentication", warning
        )


def test_a_port_in_use_is_one_line(run: Run, artifact_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeline.serve.http.main.set_up_logs", lambda **_: None)  # those of this process are pytest's
    with listen("127.0.0.1", 0) as taken:
        code, out, err = run("serve", artifact_template, "--port", taken.getsockname()[1])
    assert (code, out) == (1, "")
    assert re.fullmatch(r"edgeline: cannot listen on 127.0.0.1 port \d+: Address already in use; .*\n", err)


PACKAGES = {name: name for name in ("starlette", "httptools", "prometheus_client", "python_multipart")}


@pytest.mark.parametrize("package", cases(PACKAGES, quick=["starlette"]))
def test_a_missing_extra_is_named_in_one_line(artifact_template: Path, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from edgeline.flows.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(artifact_template), "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert re.fullmatch(r"edgeline: .*'edgeline\[http\]'.*\n", ended.stderr)


def memory_of(process: subprocess.Popen[str], name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
def test_memory_is_bounded_under_endless_bodies_and_bombs(artifact_template: Path) -> None:
    limit = 4 * 2**20
    with started(artifact_template, "--max-bytes", str(limit)) as (process, url):
        wait_until_ready(url)
        HTTP.post(f"{url}/predict", content=(artifact_template / "golden" / "0.jpg").read_bytes())
        before = memory_of(process, "VmRSS")
        for _ in range(3):
            with connect(url) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(1000):
                    connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
        assert HTTP.get(f"{url}/healthz").status_code == 200
        assert memory_of(process, "VmHWM") - before < 5 * limit


def test_connections_are_limited_by_file_descriptors() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from edgeline.serve.http.transport.connections import ConnectionLimits, affordable\n"
        "print(affordable(ConnectionLimits()), affordable(ConnectionLimits(max_connections=10)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == "96 10\n", done.stderr


ADDRESSES = {"127.0.0.1": False, "127.0.0.2": False, "0.0.0.0": True, "localhost": False}


@pytest.mark.parametrize(("host", "exposed"), ADDRESSES.items())
def test_an_address_that_other_machines_reach_is_exposed(host: str, exposed: bool) -> None:
    with listen(host, 0) as listener:
        assert is_exposed(listener) is exposed
        assert re.fullmatch(r"http://[\d.]+:\d+", url_of(listener))


def test_an_ipv6_address_is_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        listener = listen("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 loopback on this machine")
    with listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", url_of(listener))
        assert not is_exposed(listener)


@pytest.mark.parametrize("host", ["256.1.1.1", "no.such.host.invalid", "203.0.113.1"])
def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}") as raised:
        listen(host, 0)
    assert raised.value.code == "address_unusable"


def test_connections_do_not_delay_small_packets() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
