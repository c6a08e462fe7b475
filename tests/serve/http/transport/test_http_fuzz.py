"""Mutated HTTP over real sockets: only well-formed responses, never too many, and the server keeps serving."""

import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

COUNTS = [pytest.param(500, id="500"), pytest.param(100_000, id="100000", marks=pytest.mark.nightly)]
PATIENCE_S = 0.05
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
METHODS = [b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"get", b"G\0T", b"CONNECT", b"PRI", b"", b"M" * 300, b"GET "]
TARGETS = [
    b"/healthz",
    b"/predict",
    b"/v2/models/colors/infer",
    b"/artifacts/colors/latest",
    b"/model",
    b"*",
    b"x",
    b"",
    b"//a",
]
TARGETS += [
    b"/predict?top_k=2",
    b"/%zz",
    b"/%ff",
    b"/a b",
    b"/\xc3\xa9",
    b"http://x/healthz",
    b"/" + b"a" * 9000,
    b"/%00",
    b"/..%2f",
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9", b"http/1.1", b"HTTP/1.1 ", b"", b"HTTP/11"]
ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\0\r\n"]
HEADERS = [
    *[
        b"Content-Length: " + value
        for value in (b"0", b"5", b"6", b"-1", b"+5", b"5, 5", b"5 5", b"0x5", b"", b"9" * 30, b"05")
    ],
    *[
        b"Transfer-Encoding: " + value
        for value in (b"chunked", b"Chunked", b"gzip", b"chunked, chunked", b"identity", b" chunked ", b"x")
    ],
    *[b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked", b"Transfer_Encoding: chunked", b"Content-Length\t: 5"],
    *[
        b"Host: y",
        b"Host:",
        b"Host: x\0",
        b" folded: a",
        b"\tfolded",
        b"no colon",
        b": empty",
        b"X: " + b"a" * 20_000,
        b"X\xff: \xff",
    ],
    *[b"Expect: 100-continue", b"Connection: close", b"Connection: keep-alive, close", b"Connection: upgrade", b"Upgrade: h2c"],
    *[
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA",
        b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade",
    ],
    *[
        b"Content-Type: multipart/form-data; boundary=B",
        b"Content-Encoding: gzip",
        b"X-Request-Timeout-Ms: 0",
        b"Range: bytes=0-",
    ],
    *[b"X-Request-Id: a\x01b", b"Authorization: Bearer", b"Trailer: X", b"TE: trailers", b"Inference-Header-Content-Length: 9"],
]
BODIES = [
    b"",
    b"hello",
    b"hello, world",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"Z\r\nhello",
    b"-1\r\n\r\n",
]
BODIES += [b"0\r\n\r\n", b"ffffffffffffffffff\r\n", b"5\nhello\n0\n\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"\r\n\r\n", b"\0" * 70]
PLANNED = {200, 206, 304, 400, 404, 405, 408, 412, 413, 414, 415, 416, 422, 431}


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_requests_get_complete_responses_and_not_too_many(
    site: Any, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance, statuses, cut_off = random.Random(count), Counter[int](), 0
    for number in range(count):
        sent = mutant(chance)
        with contextlib.closing(site.connect()) as connection:
            answer, whole = exchange(connection, chance, sent)
        cut_off += not whole
        context = f"mutant {number} of seed {count}: {answer[-300:]!r} for {sent[:600]!r}"
        answers = list(answers_in(answer, context, whole=whole))
        statuses.update(each.status for each in answers)
        assert all(each.status in PLANNED for each in answers), context
        assert all(not each.ends for each in answers[:-1]), f"an answer after the last: {context}"
        assert all(each.ends for each in answers if each.status in (408, 414, 431) or each.code == "request_malformed"), context
        assert len(answers) <= sent.count(b" HTTP/") + sent.count(b"\r\n\r\n") + 1, context
    assert {200, 400, 404, 405, 414, 422, 431} <= statuses.keys()  # the mutants reach all of it
    assert cut_off < count / 3
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert site.client.get("/readyz").status_code == 200


def mutant(chance: random.Random) -> bytes:
    """Up to three requests in a row, each with up to four faults; some with bytes changed, some truncated."""
    found = b"".join(request(chance) for _ in range(chance.choice([1, 1, 1, 2, 3])))
    if chance.random() < 0.2:
        changed = bytearray(found)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(changed))
            changed[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        found = bytes(changed)
    if chance.random() < 0.1:
        found = found[: chance.randrange(len(found) + 1)]
    return found + LAST


def request(chance: random.Random) -> bytes:
    def odd(good: bytes, others: list[bytes]) -> bytes:
        return chance.choice(others) if chance.random() < 0.12 else good

    line = b" ".join(
        (odd(chance.choice(METHODS[:3]), METHODS), odd(chance.choice(TARGETS[:5]), TARGETS), odd(b"HTTP/1.1", VERSIONS))
    )
    lines = [line] + ([b"Host: x"] if chance.random() < 0.93 else [])
    lines += chance.choices(HEADERS, k=chance.choice([0, 0, 1, 1, 2, 4]))
    body = chance.choice(BODIES)
    if chance.random() < 0.6:
        lines.append(b"Content-Length: %d" % len(body))
    return b"".join(each + (chance.choice(ENDS) if chance.random() < 0.1 else b"\r\n") for each in lines) + b"\r\n" + body


def exchange(connection: socket.socket, chance: random.Random, sent: bytes) -> tuple[bytes, bool]:
    """Send it in up to four packets, and sometimes half-close; return the response, and whether that is all of it.

    A server may wait for more of a body.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(PATIENCE_S)
    cuts = sorted(chance.randrange(len(sent) + 1) for _ in range(chance.choice([0, 0, 1, 3])))
    answer = bytearray()
    try:
        for first, last in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            connection.sendall(sent[first:last])
        if chance.random() < 0.2:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    except OSError:  # closed by the server, or no answer in time; half-closing what is closed is no ConnectionError
        return bytes(answer), False
    return bytes(answer), True


@dataclass
class Answer:
    """One response of a connection."""

    status: int
    code: str
    ends: bool
    """Whether it has `Connection: close`."""


def answers_in(data: bytes, context: str, *, whole: bool) -> Iterator[Answer]:
    """Parse a connection's bytes strictly; responses to HEAD are recognized by what follows their head."""
    while data:
        head, blank, data = data.partition(b"\r\n\r\n")
        if not blank and not whole:
            return
        assert blank, context
        status_line, *lines = head.split(b"\r\n")
        version, status, phrase = status_line.split(b" ", 2)
        assert (version, len(status), phrase.isascii()) == (b"HTTP/1.1", 3, True), context
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon, context
            assert name.lower() not in headers, context
            assert not set(name + value) & set(b"\r\n\0"), context
            headers[name.lower()] = value
        if status == b"100":
            continue
        body = b""
        if headers.get(b"transfer-encoding") == b"chunked":
            while not data.startswith(b"0\r\n\r\n") and not data.startswith(b"HTTP/1.1 ") and data:
                size, _, data = data.partition(b"\r\n")
                body, data = body + data[: int(size, 16)], data[int(size, 16) :].removeprefix(b"\r\n")
            data = data.removeprefix(b"0\r\n\r\n")
        elif (length := int(headers.get(b"content-length", b"0"))) and data and not data.startswith(b"HTTP/1.1 "):
            if len(data) < length and not whole:
                return
            assert len(data) >= length, context
            body, data = data[:length], data[length:]
        code = json.loads(body)["code"] if body and int(status) >= 400 else ""
        yield Answer(int(status), code, headers.get(b"connection") == b"close")
