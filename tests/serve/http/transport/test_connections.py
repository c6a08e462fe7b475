"""Many clients at once: the limit, which are evicted, and what the others receive."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from edgeline.serve.http.transport.connection import Connection
from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers
from edgeline.serve.http.transport.exchange import Request
from tests.support.raw_http import (
    GET,
    LAST,
    PATIENT,
    WAIT_S,
    App,
    Place,
    code_of,
    on_this_loop,
    post,
    read_all,
    running,
    statuses,
)

FEW = ConnectionLimits(max_connections=8)


@pytest.fixture(scope="module")
def few() -> Iterator[Place]:
    """A server for few connections with long deadlines: a connection that closes was evicted."""
    with running(FEW) as place:
        yield place


def test_stalled_clients_are_evicted_for_new_ones(few: Place) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(FEW.max_connections):
            open_ones.enter_context(few.connect()).sendall(b"GET / HT")
        for _ in range(20):
            assert statuses(few.raw(LAST)) == [200]


def test_clients_that_stall_in_their_body_are_evicted_too(few: Place) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(FEW.max_connections):
            open_ones.enter_context(few.connect()).sendall(post(b"").replace(b"Length: 0", b"Length: 9"))
        for _ in range(20):
            assert statuses(few.raw(LAST)) == [200]


def test_a_sending_client_stays_while_silent_ones_are_evicted(few: Place) -> None:
    with few.connect() as sending, contextlib.ExitStack() as open_ones:
        large = bytes(2**17)  # a small one would be waited for before the application sees anything
        sending.sendall(post(large, b"/sending", b"Connection: close\r\n")[:-1])
        until = time.monotonic() + WAIT_S
        while few.app.seen[-1:] != ["/sending"]:
            assert time.monotonic() < until
        for _ in range(FEW.max_connections * 3):
            open_ones.enter_context(few.connect())
        sending.sendall(large[-1:])
        assert b'"length": 131072' in read_all(sending)


def test_a_new_client_gets_503_when_every_connection_is_busy(few: Place) -> None:
    with contextlib.ExitStack() as open_ones:
        busy = [open_ones.enter_context(few.connect()) for _ in range(FEW.max_connections)]
        for connection in busy:
            connection.sendall(GET.replace(b"/a", b"/wait"))
        until = time.monotonic() + WAIT_S
        while few.app.seen[-len(busy) :] != ["/wait"] * len(busy):
            assert time.monotonic() < until
        answer = few.raw(b"")
        assert statuses(answer) == [503]
        assert code_of(answer) == "too_many_connections"
        assert b"retry-after: 1\r\n" in answer
        few.app.let_go.set()
        assert all(b"waited" in connection.recv(65536) for connection in busy)
    few.app.let_go.clear()


def test_a_burst_of_new_clients_gets_503_when_every_connection_is_busy() -> None:
    async def scenario() -> None:
        async with on_this_loop(ConnectionLimits(max_connections=4)) as place:
            for _ in range(4):
                place.connect(GET.replace(b"/a", b"/wait"))
            await place.until(lambda: place.app.seen == ["/wait"] * 4)
            for number in range(1, 4):
                burst = [place.connect(GET) for _ in range(8)]
                await place.until(lambda number=number: len(place.rejected) == 8 * number)
                assert len(place.connections.open) == 4
                assert {code_of(await place.read_all(client)) for client in burst} == {"too_many_connections"}
            assert set(place.rejected) == {"too_many_connections"}
            assert place.app.seen == ["/wait"] * 4

    asyncio.run(scenario())


def test_a_burst_of_new_clients_evicts_only_silent_ones() -> None:
    async def scenario() -> None:
        async with on_this_loop(ConnectionLimits(max_connections=4)) as place:
            place.connect(GET.replace(b"/a", b"/wait"))
            await place.until(lambda: place.app.seen == ["/wait"])
            for number in range(3):
                for _ in range(8):
                    place.connect()
                await place.until(lambda number=number: len(place.rejected) == 5 + 8 * number)
                await place.until(lambda: len(place.connections.open) == 4)
            assert set(place.rejected) == {"connection_evicted"}

    asyncio.run(scenario())


def test_a_dropped_connection_cannot_be_evicted_again() -> None:
    async def scenario() -> None:
        taken: list[Request] = []
        async with on_this_loop(fast_path=lambda request: not taken.append(request)) as place:
            place.connect(GET)
            await place.until(lambda: taken)
            [connection] = place.connections.open
            connection.drop()
            taken[0].reply(200, [(b"content-length", b"0")], b"")
            assert not place.connections.silent
            assert not place.connections.slow

    asyncio.run(scenario())


def test_a_client_that_read_its_response_and_still_sends_its_body_is_evicted() -> None:
    with running(ConnectionLimits(max_connections=1)) as place, place.connect() as owing:
        owing.sendall(b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        left = 64 * 2**20
        while left > 0:
            left -= len(owing.recv(2**20))
        assert statuses(place.raw(LAST)) == [200]


def test_a_thousand_stalled_clients_do_not_delay_a_real_one() -> None:
    with running(PATIENT) as place, contextlib.ExitStack() as open_ones:
        for _ in range(1000):
            open_ones.enter_context(place.connect())
        for _ in range(50):
            assert statuses(place.raw(LAST)) == [200]


@pytest.mark.parametrize("name", ["max_connections", "head_s", "max_chunks"])
def test_a_limit_of_zero_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"connection.{name} must be over 0, got 0"):
        ConnectionLimits(**{name: 0})


def test_an_unread_request_is_answered_when_idle_connections_are_closed() -> None:
    async def scenario() -> list[bytes]:
        loop, connections = asyncio.get_running_loop(), Connections(PATIENT)
        server = await loop.create_server(partial(Connection, connections, Handlers(App())), "127.0.0.1", 0)
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(2)]
        answers = []
        for client in clients:
            client.setblocking(False)
            await loop.sock_sendall(client, GET)
            assert await loop.sock_recv(client, 65536)
        clients[1].send(GET)  # and the loop has no turn before the next line
        connections.closing = True
        connections.end_idle()
        for client in clients:
            with contextlib.closing(client):
                try:
                    answers.append(await loop.sock_recv(client, 65536))
                except ConnectionResetError:
                    answers.append(b"reset")
        server.close()
        return answers

    [idle, asked] = asyncio.run(scenario())
    assert idle in (b"", b"reset")
    assert b'"path": "/a"' in asked
    assert b"connection: close" in asked


def test_an_empty_line_after_a_body_leaves_a_connection_idle() -> None:
    async def scenario() -> bytes:
        async with on_this_loop() as place:
            client = place.connect(post(b"abc"))
            loop = asyncio.get_running_loop()
            assert statuses(await loop.sock_recv(client, 65536)) == [200]
            client.send(b"\r\n")
            await place.read_all(place.connect(LAST))  # by now it has arrived
            place.connections.closing = True
            place.connections.end_idle()
            return await asyncio.wait_for(loop.sock_recv(client, 65536), WAIT_S)

    assert asyncio.run(scenario()) == b""


def test_clients_that_are_late_together_are_disconnected_one_by_one() -> None:
    connections = Connections(ConnectionLimits())
    assert connections.next_eviction_time(100.0) == 100.0
    turns = [connections.next_eviction_time(100.0) for _ in range(1000)]
    assert turns == sorted(set(turns))
    assert turns[-1] == pytest.approx(100.5)
    assert connections.next_eviction_time(200.0) == 200.0
