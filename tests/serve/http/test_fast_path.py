"""The fast path gives the same responses as the application, handles what it should, and leaks nothing."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.service import ServingLimits
from edgeline.serve.inference.scheduler import ConcurrencyPlan

WAIT_S = 20.0


@pytest.fixture(scope="module")
def photo(artifact_template: Path) -> bytes:
    return (artifact_template / "golden" / "0.jpg").read_bytes()


@pytest.fixture(scope="module")
def plain_site(artifact_template: Path, serving: Any) -> Iterator[Any]:
    with serving(artifact_template) as site:
        yield site


@pytest.fixture(scope="module")
def fast_site(artifact_template: Path, serving: Any) -> Iterator[Any]:
    with serving(artifact_template, fast_path=True) as site:
        yield site


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def request(body: bytes, target: str = "/predict", *lines: str, method: str = "POST", version: str = "1.1") -> bytes:
    head = [f"{method} {target} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


@contextlib.contextmanager
def connected(site: Any) -> Iterator[socket.socket]:
    url = httpx.URL(site.url)
    with socket.create_connection((url.host, url.port), timeout=WAIT_S) as client:
        yield client


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one response from the socket, and not a byte of the next."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(1) or pytest.fail(f"the end after {data!r}")
    status, *lines = data.decode().rstrip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = b""
    while len(body) < int(headers["content-length"]):
        body += client.recv(int(headers["content-length"]) - len(body)) or pytest.fail("the end within a body")
    return int(status.split()[1]), headers, body


def ask(site: Any, data: bytes) -> tuple[int, dict[str, str], bytes]:
    with connected(site) as client:
        client.sendall(data)
        return answer(client)


def without_random_parts(response: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], Any]:
    """A response without what differs between two of them: times, generated ids, Retry-After."""
    status, headers, body = response
    chance = {"date", "x-request-id", "server-timing", "retry-after"}
    kept = {name: value for name, value in headers.items() if name not in chance} | {"names": str(sorted(headers))}
    content = json.loads(body)
    return status, kept, {name: value for name, value in content.items() if name != "request_id"}


IMAGE = "Content-Type: image/jpeg"
PLAIN = {
    "an image": ("/predict", IMAGE),
    "an image of no type": ("/predict",),
    "plain bytes": ("/predict", "Content-Type: application/octet-stream"),
    "a plain form's type, as curl sends it": ("/predict", "Content-Type: application/x-www-form-urlencoded"),
    "text": ("/predict", "Content-Type: text/plain"),
    "two classes": ("/predict?top_k=2", IMAGE),
    "more classes than there are": ("/predict?top_k=999", IMAGE),
    "an id": ("/predict", IMAGE, "X-Request-Id: abc"),
    "an invalid id": ("/predict", IMAGE, "X-Request-Id: a b"),
    "the last of its connection": ("/predict", IMAGE, "Connection: close"),
    "F2, an offer of HTTP/2": ("/predict", IMAGE, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAE"),
    "Upgrade without Connection": ("/predict", IMAGE, "Upgrade: h2c"),
}
UNUSUAL = {
    "top_k=0": ("/predict?top_k=0", IMAGE),
    "top_k twice": ("/predict?top_k=1&top_k=2", IMAGE),
    "a model": ("/predict?model=nobody", IMAGE),
    "another address": ("/predict/", IMAGE),
    "JSON": ("/predict", "Content-Type: application/json"),
    "JSON, written otherwise": ("/predict", "Content-Type: Application/JSON ; charset=utf-8"),
    "a compressed body": ("/predict", IMAGE, "Content-Encoding: gzip"),
    "a time of its own": ("/predict", IMAGE, "X-Request-Timeout-Ms: 9000"),
    "a form without a boundary": ("/predict", "Content-Type: multipart/form-data"),
}


@pytest.mark.parametrize("lines", PLAIN.values(), ids=PLAIN)
def test_a_plain_request_takes_the_fast_path_and_gets_the_same_response(
    lines: tuple[str, ...], photo: bytes, fast_site: Any, plain_site: Any
) -> None:
    data = request(photo, *lines)
    response = ask(fast_site, data)
    assert fast_site.fast[-1]
    assert response[0] == 200
    assert without_random_parts(response) == without_random_parts(ask(plain_site, data))
    assert re.fullmatch(r"queue;dur=[\d.]+, decode;dur=[\d.]+, infer;dur=[\d.]+", response[1]["server-timing"])
    if "X-Request-Id: abc" in lines:
        assert response[1]["x-request-id"] == "abc"


@pytest.mark.parametrize("lines", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_request_is_left_to_the_application(
    lines: tuple[str, ...], photo: bytes, fast_site: Any, plain_site: Any
) -> None:
    data = request(photo, *lines)
    response = ask(fast_site, data)
    assert not fast_site.fast[-1]
    assert without_random_parts(response) == without_random_parts(ask(plain_site, data))


def test_a_small_body_that_arrives_in_pieces_takes_the_fast_path(photo: bytes, fast_site: Any) -> None:
    seen, data = len(fast_site.fast), request(photo, "/predict", IMAGE)
    with connected(fast_site) as client:
        for start in range(0, len(data), 100):
            client.sendall(data[start : start + 100])
            fast_site.client.get("/healthz")  # by now it has arrived
        assert answer(client)[0] == 200
    assert fast_site.fast[seen:].count(True) == 1


def test_a_large_body_that_arrives_in_pieces_is_left_to_the_application(photo: bytes, fast_site: Any) -> None:
    seen, large = len(fast_site.fast), photo + bytes(2**17)
    data = request(large, "/predict", IMAGE)
    with connected(fast_site) as client:
        client.sendall(data[:-1])
        until(lambda: fast_site.service.budget.held == len(large) - 1)
        client.sendall(data[-1:])
        assert answer(client)[0] == 200
    assert len(fast_site.fast) == seen


@pytest.mark.parametrize("body", [b"", b"not an image", b"\xff\xd8\xff"], ids=["empty", "not an image", "cut off"])
def test_a_bad_image_gets_the_same_error_as_from_the_application(body: bytes, fast_site: Any, plain_site: Any) -> None:
    data = request(body, "/predict", IMAGE, "X-Request-Id: abc")
    response = ask(fast_site, data)
    assert fast_site.fast[-1]
    assert without_random_parts(response) == without_random_parts(ask(plain_site, data))
    assert response[0] in (400, 422)
    assert json.loads(response[2])["request_id"] == response[1]["x-request-id"] == "abc"


def test_pipelined_requests_are_answered_in_order(photo: bytes, fast_site: Any) -> None:
    asked = [request(photo, f"/predict?top_k={number}", IMAGE) for number in (1, 2, 3)]
    with connected(fast_site) as client:
        client.sendall(b"".join(asked))
        response = [len(json.loads(answer(client)[2])["predictions"]) for _ in asked]
        client.sendall(asked[0])
        assert len(json.loads(answer(client)[2])["predictions"]) == 1
    assert response == [1, 2, 3]


def test_an_http_1_0_connection_closes_after_the_response(photo: bytes, fast_site: Any) -> None:
    with connected(fast_site) as client:
        client.sendall(request(photo, "/predict", IMAGE, version="1.0"))
        status, headers, _ = answer(client)
        assert (status, headers["connection"], client.recv(1)) == (200, "close", b"")


def counted(site: Any, name: str, **labels: str) -> float:
    read = site.client.get("/metrics").text
    shown = "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
    [value] = re.findall(rf"(?m)^{re.escape(name + shown)} (\S+)$", read) or ["0"]
    return float(value)


def test_every_response_is_counted(photo: bytes, fast_site: Any) -> None:
    names = [
        ("edgeline_requests_total", {"method": "POST", "route": "/predict", "status": "200"}),
        ("edgeline_requests_total", {"method": "POST", "route": "/predict", "status": "422"}),
        ("edgeline_rejected_total", {"reason": "not_an_image"}),
        ("edgeline_request_seconds_count", {"route": "/predict"}),
        ("edgeline_decode_seconds_count", {}),
    ]
    before = [counted(fast_site, name, **labels) for name, labels in names]
    for _ in range(3):
        ask(fast_site, request(photo, "/predict", IMAGE))
    ask(fast_site, request(b"not an image", "/predict", IMAGE))
    after = [counted(fast_site, name, **labels) for name, labels in names]
    assert [a - b for a, b in zip(after, before, strict=True)] == [3, 1, 1, 4, 3]
    assert fast_site.service.budget.held == fast_site.service.engine.in_flight == 0


class Stuck(Classifier):
    """Decodes nothing until it is released."""

    go_on: threading.Event

    def pixels(self, image: bytes) -> np.ndarray:
        assert self.go_on.wait(WAIT_S)
        return super().pixels(image)


@pytest.fixture
def stuck(artifact_template: Path) -> Iterator[Callable[[Path], Classifier]]:
    Stuck.go_on = threading.Event()
    yield lambda path: Stuck.open(path, threads=1, verify=False)
    Stuck.go_on.set()


ONE = ConcurrencyPlan(workers=1, threads=1)


@pytest.mark.parametrize("others", [0, 1, 3])
def test_work_on_the_fast_path_is_cancelled_when_the_client_disconnects(
    stuck: Any, artifact_template: Path, photo: bytes, serving: Any, others: int
) -> None:
    with serving(artifact_template, open_classifier=stuck, fast_path=True, plan=ONE) as site:
        engine, budget = site.service.engine, site.service.budget
        with connected(site) as first, connected(site) as second:
            first.sendall(request(photo, "/predict", IMAGE))
            until(lambda: engine.in_flight == 1 and engine.waiting == 0)
            second.sendall(request(photo, "/predict", IMAGE) * (1 + others))
            until(lambda: engine.waiting == 1)
            assert budget.held == 2 * len(photo)
            second.close()
            until(lambda: engine.in_flight == 1)
            assert budget.held == len(photo)
            Stuck.go_on.set()
            assert answer(first)[0] == 200
        until(lambda: engine.waiting == 0)
        assert (engine.stats.abandoned, engine.stats.images, budget.held) == (1, 1, 0)


def test_a_full_engine_rejects_at_once_and_the_connection_stays_open(
    stuck: Any, artifact_template: Path, photo: bytes, serving: Any
) -> None:
    with serving(artifact_template, open_classifier=stuck, fast_path=True, plan=ONE, queue=1) as site:
        engine, data = site.service.engine, request(photo, "/predict", IMAGE)
        with connected(site) as first, connected(site) as second, connected(site) as third:
            first.sendall(data)
            until(lambda: engine.in_flight == 1 and engine.waiting == 0)
            second.sendall(data)
            until(lambda: engine.waiting == 1)
            third.sendall(data)
            status, headers, body = answer(third)
            assert (status, json.loads(body)["code"]) == (503, "overloaded")
            assert int(headers["retry-after"]) >= 0
            Stuck.go_on.set()
            assert (answer(first)[0], answer(second)[0]) == (200, 200)
            third.sendall(data)
            assert answer(third)[0] == 200
        assert counted(site, "edgeline_rejected_total", reason="overloaded") == engine.stats.rejected == 1


def test_a_missed_deadline_is_a_504_if_started_and_a_503_if_queued(
    stuck: Any, artifact_template: Path, photo: bytes, serving: Any
) -> None:
    with serving(
        artifact_template, open_classifier=stuck, fast_path=True, plan=ONE, serving_limits=ServingLimits(deadline_s=0.3)
    ) as site:
        started = ask(site, request(photo, "/predict", IMAGE))
        waiting = ask(site, request(photo, "/predict", IMAGE))
        assert [(response[0], json.loads(response[2])["code"]) for response in (started, waiting)] == [
            (504, "deadline_exceeded"),
            (503, "deadline_exceeded"),
        ]
        assert (site.service.engine.stats.expired, site.service.budget.held) == (2, 0)
        Stuck.go_on.set()


def test_a_stopping_server_closes_the_connection_after_the_response(
    stuck: Any, artifact_template: Path, photo: bytes, serving: Any
) -> None:
    with serving(artifact_template, open_classifier=stuck, fast_path=True, plan=ONE) as site, connected(site) as client:
        client.sendall(request(photo, "/predict", IMAGE))
        until(lambda: site.service.engine.in_flight == 1)
        site.server.stop()
        until(lambda: site.server.connections.closing)
        Stuck.go_on.set()
        status, headers, _ = answer(client)
        assert (status, headers["connection"]) == (200, "close")


# Tokens


def test_only_requests_with_a_valid_token_take_the_fast_path(
    artifact_template: Path, photo: bytes, serving: Any, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("a-token-of-enough-letters\n")
    with (
        serving(artifact_template, fast_path=True, tokens=Tokens(tmp_path / "tokens")) as site,
        connected(site) as client,
    ):
        for lines, status, short in (
            (["Authorization: Bearer a-token-of-enough-letters"], 200, True),
            (["Authorization: Bearer another-token-of-letters"], 401, False),
            ([], 401, False),
            (["Authorization: Bearer a-token-of-enough-letters"] * 2, 401, False),
        ):
            client.sendall(request(photo, "/predict", *lines))
            found, _, body = answer(client)
            assert (found, site.fast.pop()) == (status, short), lines
            assert (b"predictions" in body) == short
