"""F2: clients that offer to switch to another protocol, as Java's HttpClient does, get their request answered."""

from collections.abc import Iterator

import pytest

from tests.serve.http.transport.test_connection import REJECTED
from tests.support.raw_http import GET, LAST, PATIENT, Place, code_of, post, read_all, running, statuses

OFFERS = {
    "h2c, as Java sends it": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n",
    "two at once": b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\nUpgrade: foo/2, bar\r\n",
}
H2C = OFFERS["h2c, as Java sends it"]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A server with the default limits."""
    with running(PATIENT) as place:
        yield place


def chunked(more: bytes, body: bytes = b"1\r\na\r\n5;x=y\r\nbcdef\r\n0\r\nX-Trailer: 1\r\n\r\n") -> bytes:
    return b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%b\r\n%b" % (more, body)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_the_body_is_read_and_the_connection_kept(place: Place, offer: bytes) -> None:
    answer = place.raw(post(b"12345", more=offer) + chunked(offer) + GET.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n") + LAST)
    assert statuses(answer) == [200, 200, 200, 200]
    assert b'"path": "/echo", "method": "POST", "query": "", "length": 5' in answer
    assert b'"path": "/echo", "method": "POST", "query": "", "length": 6' in answer
    assert answer.count(b"connection: close") == 1  # the last one's


def test_a_large_body_arrives_complete(place: Place) -> None:
    assert b'"length": 5000000' in place.raw(post(bytes(5_000_000), more=H2C) + LAST)


def test_a_request_in_pieces_of_one_byte_is_the_same_request(place: Place) -> None:
    with place.connect() as connection:
        for byte in post(b"abc", more=H2C) + post(b"defg", more=H2C + b"Connection: close\r\n"):
            connection.sendall(bytes([byte]))
        answer = read_all(connection)
    assert statuses(answer) == [200, 200]
    assert b'"length": 3' in answer
    assert b'"length": 4' in answer


def test_a_hundred_pipelined_requests_are_answered_in_order(place: Place) -> None:
    answer = place.raw(b"".join(post(bytes(index), b"/%d" % index, H2C) for index in range(100)) + LAST)
    assert [int(part.partition(b'"')[0]) for part in answer.split(b'"path": "/')[1:-1]] == list(range(100))
    assert [int(part.partition(b"}")[0]) for part in answer.split(b'"length": ')[1:-1]] == list(range(100))


def test_a_body_is_never_parsed_as_a_request(place: Place) -> None:
    place.app.seen.clear()
    answer = place.raw(post(b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", more=H2C) + LAST)
    assert statuses(answer) == [200, 200]
    assert place.app.seen == ["/echo", "/last"]


def test_a_100_continue_is_sent_when_the_body_is_read(place: Place) -> None:
    with place.connect() as connection:
        head = post(b"", more=b"Expect: 100-continue\r\n" + H2C).replace(b"Length: 0", b"Length: 3")
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc" + LAST)
        answer = read_all(connection)
    assert statuses(answer) == [200, 200]
    assert b'"length": 3' in answer


@pytest.mark.parametrize("line", [b"Connection: close\r\n", b""], ids=["Connection: close", "HTTP/1.0"])
def test_the_last_request_of_a_connection_remains_the_last(place: Place, line: bytes) -> None:
    request = post(b"abc", more=H2C + line)
    answer = place.raw((request if line else request.replace(b"HTTP/1.1", b"HTTP/1.0")) + GET)
    assert statuses(answer) == [200]
    assert b'"length": 3' in answer
    assert b"connection: close" in answer


def test_connect_is_rejected_and_nothing_after_it_is_answered(place: Place) -> None:
    for target in (b"x:80", b"/", b"/predict"):
        answer = place.raw(b"CONNECT %b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n%b\r\nabc" % (target, H2C) + GET)
        assert (statuses(answer), code_of(answer)) == ([400], "request_malformed")


WITH_A_HOST = {name: (sent, status) for name, (sent, status, _) in REJECTED.items() if b"\r\nHost: x\r\n" in sent}


@pytest.mark.parametrize(("sent", "status"), WITH_A_HOST.values(), ids=WITH_A_HOST)
def test_a_malformed_request_is_rejected_with_an_offer_as_without_one(place: Place, sent: bytes, status: int) -> None:
    answer = place.raw(sent.replace(b"\r\nHost: x\r\n", b"\r\nHost: x\r\n" + H2C, 1) + GET)
    assert statuses(answer) == [status]
    assert statuses(place.raw(LAST)) == [200]
