"""`edgeline serve` as a process: signals, options and files."""

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeline.serve.runtime.graph_cache import processor_identity
from tests.support.processes import DEADLINE_S, HTTP, ROOT, connect, line_of, read_all, started, wait_until_ready

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def followed(make_artifact: Any, seal: Callable[..., Path], tmp_path: Path) -> tuple[Path, Callable[..., None]]:
    """A name's folder with version 1, and a function that publishes another, optionally with a different model."""
    store = tmp_path / "published" / "colors"
    store.mkdir(parents=True)

    def publish(version: int, text: bytes = b"") -> None:
        folder = make_artifact(store=tmp_path / f"made-{version}", version=version)
        if text:
            with (folder / "model.onnx").open("ab") as model:
                model.write(b"\x32" + bytes([len(text)]) + text)  # ModelProto.doc_string
            seal(folder)
        os.replace(folder, store / str(version))

    publish(1)
    return store, publish


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 3 * DEADLINE_S
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


def ready(url: str) -> dict[str, Any]:
    found: dict[str, Any] = HTTP.get(f"{url}/readyz").json()
    return found


def test_sighup_loads_a_new_version_and_sigusr1_rolls_back(followed: Any) -> None:
    store, publish = followed
    with started(store) as (process, url):
        wait_until_ready(url)
        publish(2)
        process.send_signal(signal.SIGHUP)
        until(lambda: ready(url)["version"] == 2)
        process.send_signal(signal.SIGUSR1)
        until(lambda: ready(url)["version"] == 1)
        assert ready(url)["rolled_back_from"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.long
def test_after_sigkill_it_restarts_on_the_same_port(followed: Any, tmp_path: Path) -> None:
    store, _ = followed
    photo = (store / "1" / "golden" / "0.jpg").read_bytes()
    options = ("--cache", str(tmp_path / "cache"), "--runners", "1")
    with started(store, *options) as (process, url), connect(url) as idle:
        wait_until_ready(url)
        before = HTTP.post(f"{url}/predict", content=photo).json()
        process.kill()
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        port = str(httpx.URL(url).port)
        with started(store, *options, "--port", port) as (_, again):
            wait_until_ready(again)
            assert again == url
            assert HTTP.post(f"{again}/predict", content=photo).json() == before
        assert read_all(idle) == b""


@pytest.mark.long
@pytest.mark.skipif(not processor_identity(), reason="graphs are cached only if the processor is known")
def test_a_start_caches_the_optimized_graph_and_a_reload_does_not(followed: Any, tmp_path: Path) -> None:
    store, publish = followed
    options = ("--cache", str(tmp_path / "cache"), "--runners", "1")
    kept = tmp_path / "cache" / "optimized"
    with started(store, *options) as (process, url):
        wait_until_ready(url)
        [first] = kept.glob("*.onnx")
        # Another model, so that it would have a file of its own.
        publish(2, b"another")
        process.send_signal(signal.SIGHUP)
        until(lambda: ready(url)["version"] == 2)
        assert list(kept.glob("*.onnx")) == [first]
    with started(store, *options) as (_, url):
        wait_until_ready(url)
        assert ready(url)["version"] == 2
        assert len(list(kept.glob("*.onnx"))) == 2


def test_readiness_ends_before_the_socket_closes(artifact_template: Path) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(photo)
    patient = "from edgeline.serve.http.transport import server; server.LAME_DUCK_S = 5\n"
    patient += "from edgeline.flows.cli.main import main; main()"
    with started(artifact_template, main=[sys.executable, "-c", patient]) as (process, url):
        wait_until_ready(url)
        with connect(url) as uploading, httpx.Client(base_url=url, verify=False) as probing:
            uploading.sendall(head)
            assert probing.get("/readyz").status_code == 200
            process.send_signal(signal.SIGTERM)
            until(lambda: (last := probing.get("/readyz")).status_code == 503 and last.json()["code"] == "stopping")
            uploading.sendall(photo)
            answer = read_all(uploading)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer
        assert process.wait(DEADLINE_S) == 0


def test_a_second_signal_ends_the_grace_period(artifact_template: Path) -> None:
    with started(artifact_template, "--grace", "600") as (process, url):
        wait_until_ready(url)
        with connect(url) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
            assert HTTP.get(f"{url}/healthz").status_code == 200
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            until(lambda: process.poll() is not None or process.send_signal(signal.SIGTERM) is not None)
            assert process.wait(DEADLINE_S) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_with_tls_only_https_is_answered(artifact_template: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    with started(artifact_template, "--certificate", cert, "--key", key, scheme="https") as (process, url):
        trusting = ssl.create_default_context(cafile=cert)
        with httpx.Client(base_url=url, verify=trusting) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            assert client.post("/predict", content=photo).json()["predictions"][0]["label"] == "red"
            assert client.post("/predict", content=photo * 200).status_code in (200, 422)
        with pytest.raises(httpx.TransportError):
            HTTP.get(url.replace("https", "http") + "/healthz")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")


def test_metrics_of_an_exposed_server_are_on_loopback_only(artifact_template: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a" * 32)
    options = ("--host", "0.0.0.0", "--metrics-port", "0", "--tokens", str(tokens), "--log-format", "json")
    with started(artifact_template, *options) as (process, url):
        address = url.replace("0.0.0.0", "127.0.0.1")
        where = line_of(process.stdout)
        wait_until_ready(address)
        assert HTTP.get(f"{address}/metrics").status_code == 401
        assert HTTP.get(f"{address}/metrics", headers={"Authorization": "Bearer " + "a" * 32}).status_code == 404
        assert "edgeline_ready 1.0" in HTTP.get(where.split()[-1]).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        lines = (process.stderr.read() if process.stderr else "").splitlines()
        assert "authentication" not in "".join(lines)
        assert [json.loads(line)["level"] for line in lines] == ["info"] * len(lines)


@pytest.mark.long
def test_the_measured_plan_is_reused_at_the_second_start(artifact_template: Path, tmp_path: Path) -> None:
    messages = []
    for _ in range(2):
        with started(artifact_template, "--cache", str(tmp_path / "cache")) as (process, url):
            wait_until_ready(url)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
            messages.append(process.stderr.read() if process.stderr else "")
    assert "found in" in messages[0]
    assert "found in" not in messages[1]


REJECTED: dict[str, tuple[list[str], str]] = {
    "a missing token file": (["--tokens", "absent"], "the token file absent cannot be read: No such file"),
    "a certificate without its key": (["--certificate", "a.pem"], "TLS needs both --certificate and --key"),
    "a file that is not a certificate": (["--certificate", "README.md", "--key", "README.md"], "cannot be used: .*PEM files"),
}


@pytest.mark.parametrize(("options", "reason"), REJECTED.values(), ids=REJECTED)
def test_an_unusable_option_is_one_line_and_exit_code_1(
    run: Run, artifact_template: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], reason: str
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("edgeline.serve.http.main.set_up_logs", lambda **_: None)  # those of this process are pytest's
    code, out, err = run("serve", artifact_template, "--port", "0", *options)
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert re.search(reason, line), line
