"""Rows of docs/server-faults.md that no other test covers."""

import io
import logging
import os
import re
import resource
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.observability.logs import JsonLines, TextLines
from tests.support import processes

WAIT_S = 30.0
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


@pytest.fixture(name="photo", scope="module")
def golden_photo(artifact_template: Path) -> bytes:
    return (artifact_template / "golden" / "0.jpg").read_bytes()


# Memory and descriptors


def resident(pid: int, name: str = "VmRSS") -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def plain_png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def claimed_png(side: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"")


@needs_proc
@pytest.mark.long
def test_fifty_concurrent_bombs_take_memory_for_one_image_a_worker(artifact_template: Path, photo: bytes) -> None:
    side = 2000
    at_the_limit, over_it = plain_png(side), claimed_png(side * 10)
    with (
        processes.started(artifact_template, "--max-pixels", str(side * side)) as (process, url),
        httpx.Client(verify=False) as client,
    ):
        processes.wait_until_ready(url)
        honest = client.post(f"{url}/predict", content=photo).json()
        client.post(f"{url}/predict", content=at_the_limit)
        before = resident(process.pid)

        def ask(body: bytes) -> httpx.Response:
            return processes.HTTP.post(f"{url}/predict", content=body, timeout=WAIT_S)

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(ask, [over_it, at_the_limit] * 25))
            neighbors = list(pool.map(ask, [over_it, photo] * 10))[1::2]
        assert {answer.status_code for answer in answers[::2]} == {413}
        assert {answer.status_code for answer in answers[1::2]} == {200}
        assert [answer.json() for answer in neighbors] == [honest] * 10
        # 25 images of 12 MB, and a second copy of each, would be 600 MB; two workers decode two of them.
        assert resident(process.pid, "VmHWM") - before < 150 * 10**6


@pytest.mark.long
@needs_proc
def test_thousands_of_idle_connections_do_not_keep_new_clients_out(artifact_template: Path) -> None:
    count = 3000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 500:
        pytest.skip(f"this process may have only {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    held: list[socket.socket] = []
    try:
        with processes.started(artifact_template) as (process, url), httpx.Client(timeout=WAIT_S, verify=False) as client:
            processes.wait_until_ready(url)
            before = resident(process.pid)
            for number in range(count):
                held.append(processes.connect(url))
                if number % 3 == 0:
                    held[-1].sendall(b"GET / HT")
                if number % 100 == 0:
                    assert client.get(f"{url}/healthz").status_code == 200
            assert processes.HTTP.get(f"{url}/readyz").status_code == 200
            assert resident(process.pid) - before < 100 * 10**6
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


FEW_FILES = (
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); from edgeline.flows.cli.main import main; main()"
)


def test_a_server_with_few_file_descriptors_still_accepts(artifact_template: Path, photo: bytes) -> None:
    with processes.started(artifact_template, main=[sys.executable, "-c", FEW_FILES]) as (process, url):
        processes.wait_until_ready(url)
        held = [processes.connect(url) for _ in range(400)]
        for _ in range(20):
            assert processes.HTTP.post(f"{url}/predict", content=photo, timeout=WAIT_S).status_code == 200
        for connection in held:
            connection.close()
        assert processes.HTTP.post(f"{url}/predict", content=photo, timeout=WAIT_S).status_code == 200
        process.terminate()
        assert process.wait(WAIT_S) == 0
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")


# Clients that disconnect, and deadlines


class Busy(Classifier):
    """A classifier that waits for a signal."""

    begun: threading.Semaphore
    go_on: threading.Event

    def pixels(self, image: bytes) -> np.ndarray:
        self.begun.release()
        assert self.go_on.wait(WAIT_S)
        return super().pixels(image)


@pytest.fixture
def busy() -> type[Busy]:
    Busy.begun, Busy.go_on = threading.Semaphore(0), threading.Event()
    return Busy


def test_a_client_that_disconnects_during_inference_leaves_nothing_behind(
    artifact_template: Path, photo: bytes, serving: Any, busy: type[Busy], caplog: pytest.LogCaptureFixture
) -> None:
    with serving(artifact_template, open_classifier=busy.open) as site:
        for _ in range(2):
            with site.connect() as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(photo), photo))
                assert busy.begun.acquire(timeout=WAIT_S)
        until(lambda: len(site.server.connections.open) <= 1)  # the test's own
        busy.go_on.set()
        until(lambda: site.service.engine.in_flight == 0)
        assert site.client.post("/predict", content=photo).status_code == 200
        assert site.service.budget.held == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_request_that_expires_in_the_queue_is_never_run(
    artifact_template: Path, photo: bytes, serving: Any, busy: type[Busy]
) -> None:
    with serving(artifact_template, open_classifier=busy.open) as site, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(httpx.post, f"{site.url}/predict", content=photo, timeout=WAIT_S) for _ in range(2)]
        try:
            assert all(busy.begun.acquire(timeout=WAIT_S) for _ in waiting)
            late = site.client.post("/predict", content=photo, headers={"X-Request-Timeout-Ms": "20"})
            assert (late.status_code, late.json()["code"]) == (503, "deadline_exceeded")
            assert int(late.headers["retry-after"]) >= 1
        finally:
            busy.go_on.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert not busy.begun.acquire(blocking=False), "the late image was looked at"


# Concurrent reloads


def test_concurrent_reloads_load_one_version_at_a_time(make_artifact: Any, tmp_path: Path, photo: bytes, serving: Any) -> None:
    store = tmp_path / "published"
    make_artifact(store=store, version=1)
    opening, overlapping, opened = threading.Lock(), threading.Event(), list[str]()

    def open_alone(path: Path) -> Classifier:
        if opening.locked():
            overlapping.set()
        with opening:
            opened.append(path.name)
            return Classifier.open(path)

    with serving(store / "colors", open_classifier=open_alone) as site, ThreadPoolExecutor(4) as pool:
        made = make_artifact(store=tmp_path / "made", version=2)
        os.replace(made, store / "colors" / "2")
        storm = [pool.submit(lambda: [site.service.models.reload() for _ in range(200)]) for _ in range(3)]
        asked = [site.client.post("/predict", content=photo).status_code for _ in range(20)]
        assert all(each.result() for each in storm)
        until(lambda: site.client.get("/readyz").json()["version"] == 2)
        assert set(asked) == {200}
    assert not overlapping.is_set()
    assert opened == ["1", "2"]


# Input of clients that is logged, compared or sent back

MARKUP = "<script>alert(1)</script>"
HOSTILE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a path": ("GET", f"/{MARKUP}", {}),
    "a path with line breaks": ("GET", "/%0d%0aSet-Cookie:%20a=b%0d%0a2026-01-01 ERROR forged", {}),
    "a request id": ("GET", "/healthz", {"headers": {"X-Request-Id": b"a\tERROR forged\xff"}}),
    "a model": ("POST", f"/predict?model=%0d%0aforged{MARKUP}", {"content": b"x"}),
    "a file's name": ("POST", "/predict", {"files": {"f": (f"a\r\nforged: {MARKUP}.jpg", b"x")}}),
    "a media type": ("POST", "/predict", {"content": b"x", "headers": {"Content-Type": f"text/{MARKUP}"}}),
    "a deadline": ("POST", "/predict", {"content": b"x", "headers": {"X-Request-Timeout-Ms": MARKUP}}),
    "a V2 model": ("GET", "/v2/models/%0d%0aforged", {}),
    "a V2 input": ("POST", "/v2/models/colors/infer", {"json": {"inputs": [{"name": f"\r\nforged{MARKUP}"}]}}),
    "an artifact": ("GET", "/artifacts/%0d%0aforged/latest", {}),
    "an image": ("POST", "/predict", {"content": b"GIF89a" + MARKUP.encode()}),
    "nothing": ("POST", "/predict", {}),
}


@pytest.mark.parametrize(("method", "path", "sent"), HOSTILE.values(), ids=HOSTILE)
def test_client_input_never_starts_a_log_line_a_header_or_markup(
    artifact_template: Path, serving: Any, caplog: pytest.LogCaptureFixture, method: str, path: str, sent: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO)
    with serving(artifact_template, access_log=True, store=artifact_template.parent.parent) as site:
        reply = site.client.request(method, path, **sent)
    assert reply.status_code in (200, 400, 404, 415, 422)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in reply.headers
    assert "server" not in reply.headers
    assert not re.search(r"Traceback|\.py\b|starlette|httptools|Python|/[a-z]+/[a-z]+/", reply.text)
    assert str(artifact_template.parent) not in reply.text
    assert "\n" not in reply.text
    for record in (record for record in caplog.records if record.name.startswith("serve")):
        assert all(len(formatter.format(record).splitlines()) == 1 for formatter in (TextLines(), JsonLines()))
        assert "forged" not in record.getMessage()


SAME = [
    "/predict",
    "//predict",
    "/predict/",
    "/PREDICT",
    "/predict;a=b",
    "/predict;/healthz",
    "/healthz/../predict",
    "/%70redict",
]
SAME += ["/healthz%2f..%2fpredict", "/./predict", "http://x/predict", "/predict?/healthz", "/predict%3f", "/healthz%00/predict"]
TRICKS = [
    "",
    "X-Original-URL: /healthz",
    "X-Rewrite-URL: /healthz",
    "X-Forwarded-For: 127.0.0.1",
    "X-HTTP-Method-Override: GET",
]


@pytest.mark.parametrize("path", SAME)
def test_no_spelling_of_a_path_bypasses_the_token(
    artifact_template: Path, tmp_path: Path, photo: bytes, serving: Any, path: str
) -> None:
    (tmp_path / "tokens").write_text("a-token-of-enough-letters\n")
    with serving(artifact_template, tokens=Tokens(tmp_path / "tokens")) as site:
        for host in ("x", "localhost", "127.0.0.1", "x/healthz"):
            for trick in TRICKS:
                lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Content-Length: {len(photo)}"]
                head = "\r\n".join([*lines, *([trick] if trick else []), "", ""]).encode()
                assert re.match(rb"HTTP/1\.1 40[01] ", site.raw(head + photo)), (host, trick)


def test_a_url_or_file_path_in_a_request_is_never_opened(site: Any, artifact_template: Path) -> None:
    secret = artifact_template / "golden" / "0.jpg"
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/a.jpg"
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
        for place in (url, secret.as_uri(), str(secret), f"data:image/jpeg;base64,{'A' * 8}"):
            for sent in (
                {"url": "/predict", "content": place.encode()},
                {"url": "/predict", "json": {"url": place, "path": place}},
                {"url": "/predict", "params": {"url": place, "path": place, "file": place}},
                {"url": "/predict", "data": {"url": place}},
                {"url": "/predict", "files": {"url": (None, place), "file": (place, b"no image")}},
                {"url": "/v2/models/colors/infer", "json": {"inputs": [tensor | {"data": [place]}]}},
                {"url": "/v2/models/colors/infer", "json": {"inputs": [tensor | {"parameters": {"url": place}}]}},
            ):
                assert site.client.post(**sent).status_code in (400, 415, 422), sent
        with pytest.raises(BlockingIOError):
            bait.accept()
