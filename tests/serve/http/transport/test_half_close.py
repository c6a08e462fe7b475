"""G2: clients that end their half of the connection after a request, as `nc -N` does, get its response."""

import asyncio
import re
import socket
import time
from collections.abc import Iterator

import pytest

from edgeline.serve.http.transport.connection import PROBE_S
from edgeline.serve.http.transport.connections import ConnectionLimits
from tests.support.raw_http import GET, MEDIUM, PATIENT, Place, on_this_loop, post, read_all, running, statuses

GET_WAIT = GET.replace(b"/a", b"/wait")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A server with the default limits."""
    with running(PATIENT) as place:
        yield place


def half_closed(place: Place, request: bytes) -> bytes:
    with place.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def test_complete_requests_are_answered_in_order_and_the_connection_ends(place: Place) -> None:
    answer = half_closed(place, post(b"12345") + GET + post(b"123"))
    assert statuses(answer) == [200, 200, 200]
    assert re.findall(rb'"length": (\d+)', answer) == [b"5", b"0", b"3"]
    assert answer.count(b"connection: close") <= 1  # none if all were answered before the server noticed


COMPLETE = {
    "HTTP/1.0": b"GET /a HTTP/1.0\r\n\r\n",
    "chunks": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "a large body": post(bytes(1_000_000)),
    "a large response": GET.replace(b"/a", b"/medium"),
    "a response without a length": GET.replace(b"/a", b"/stream"),
    "one that the application does not read": post(bytes(100_000), b"/deaf"),
    "the last of its connection": GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "half of another after it": GET + post(b"abc")[:-1],
    "a head of another after it": GET + b"GET /b HT",
    "nonsense after it": GET + b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("request_", COMPLETE.values(), ids=COMPLETE)
def test_a_complete_request_is_answered(place: Place, request_: bytes) -> None:
    answer = half_closed(place, request_)
    assert statuses(answer) == [200]
    assert b"medium" not in request_ or len(answer) > MEDIUM


INCOMPLETE = {
    "nothing": b"",
    "half a head": b"GET /a HTTP/1.1\r\nHo",
    "half a small body": post(b"abc")[:-1],
    "half a large body": post(bytes(100_000))[:-1],
    "no end of the chunks": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
}


@pytest.mark.parametrize("request_", INCOMPLETE.values(), ids=INCOMPLETE)
def test_an_incomplete_request_ends_the_connection_at_once(place: Place, request_: bytes) -> None:
    begun = time.monotonic()
    assert half_closed(place, request_) == b""
    assert time.monotonic() - begun < PATIENT.head_s


def test_a_client_that_is_still_there_gets_a_late_response() -> None:
    async def scenario() -> None:
        async with on_this_loop() as place:
            client = place.connect(GET_WAIT)
            await place.until(lambda: place.app.seen)
            client.shutdown(socket.SHUT_WR)
            await asyncio.sleep(2.5 * PROBE_S)
            assert not place.app.gone.is_set()
            place.app.let_go.set()
            answer = await place.read_all(client)
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")  # asked once whether it is there
            assert answer.endswith(b"waited")

    asyncio.run(scenario())


def test_an_http_1_0_client_gets_no_interim_response() -> None:
    async def scenario() -> None:
        async with on_this_loop() as place:
            client = place.connect(b"GET /wait HTTP/1.0\r\n\r\n")
            await place.until(lambda: place.app.seen)
            client.shutdown(socket.SHUT_WR)
            await asyncio.sleep(1.5 * PROBE_S)
            place.app.let_go.set()
            assert statuses(await place.read_all(client)) == [200]

    asyncio.run(scenario())


def test_the_work_is_cancelled_when_the_client_goes_later() -> None:
    async def scenario() -> None:
        async with on_this_loop() as place:
            client = place.connect(GET_WAIT + GET)
            await place.until(lambda: place.app.seen)
            client.shutdown(socket.SHUT_WR)
            await asyncio.sleep(PROBE_S / 2)
            client.close()
            await place.until(lambda: place.app.gone.is_set())
            assert place.app.seen == ["/wait"]

    asyncio.run(scenario())


def test_a_client_that_does_not_read_its_response_is_disconnected_within_the_write_deadline() -> None:
    with running(ConnectionLimits(write_s=1.0)) as place, place.connect() as connection:
        connection.sendall(GET.replace(b"/a", b"/large"))
        connection.shutdown(socket.SHUT_WR)
        assert place.settles(0)
