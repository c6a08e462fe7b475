"""HTTP from clients that are slow, greedy, broken or hostile: every deadline and limit, over real sockets."""

import asyncio
import contextlib
import gc
import itertools
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers
from edgeline.serve.http.transport.exchange import DISCARD_BYTES
from edgeline.serve.http.transport.request_parser import State
from edgeline.serve.http.transport.server import Server, listen
from tests.support.raw_http import (
    GET,
    LAST,
    MEDIUM,
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

GET_WAIT = GET.replace(b"/a", b"/wait")
QUICK = ConnectionLimits(head_s=1.0, body_s=1.5, idle_s=1.0, write_s=1.0)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A server with the default limits."""
    with running(PATIENT) as place:
        yield place


@pytest.fixture(scope="module")
def quick() -> Iterator[Place]:
    """A server with short deadlines."""
    with running(QUICK) as place:
        yield place


# Requests and responses


def test_a_request_reaches_the_application_unchanged(place: Place) -> None:
    answer = place.raw(post(b"12345", b"/a%20b?c=d", b"Connection: close\r\n"))
    assert answer.endswith(b'{"path": "/a b", "method": "POST", "query": "c=d", "length": 5}')


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 5_000_000])
def test_a_body_of_any_size_arrives_complete(place: Place, size: int) -> None:
    assert f'"length": {size}'.encode() in place.raw(post(bytes(size), more=b"Connection: close\r\n"))


def test_a_chunked_body_arrives_complete_without_its_trailers(place: Place) -> None:
    chunked = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert b'"length": 6' in place.raw(chunked + b"1\r\na\r\n5;x=y\r\nbcdef\r\n0\r\nX-Trailer: 1\r\n\r\n")


def test_a_hundred_pipelined_requests_are_answered_in_order(place: Place) -> None:
    requests = b"".join(post(bytes(index), b"/%d" % index) for index in range(100))
    answer = place.raw(requests + LAST)
    assert [int(path) for path in re.findall(rb'"path": "/(\d+)"', answer)] == list(range(100))
    assert [int(length) for length in re.findall(rb'"length": (\d+)', answer)] == [*range(100), 0]


def test_a_request_in_pieces_of_one_byte_is_the_same_request(place: Place) -> None:
    with place.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(b"abc", more=b"Connection: close\r\n"):
            connection.sendall(bytes([byte]))
        assert b'"length": 3' in read_all(connection)


def test_a_100_continue_is_sent_when_the_application_reads_the_body(place: Place) -> None:
    with place.connect() as connection:
        connection.sendall(post(b"", more=b"Expect: 100-continue\r\n").replace(b"Length: 0", b"Length: 3"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert b'"length": 3' in connection.recv(1000)


def test_a_response_instead_of_100_continue_ends_the_connection(place: Place) -> None:
    with place.connect() as connection:
        connection.sendall(post(b"", b"/deaf", b"Expect: 100-continue\r\n").replace(b"Length: 0", b"Length: 3"))
        answer = read_all(connection)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


def test_a_thousand_pipelined_requests_are_rejected(place: Place) -> None:
    answer = place.raw(post(b"", b"/listen") + post(b"") * 1000)
    assert statuses(answer) == [200]
    assert statuses(place.raw(LAST)) == [200]


def test_the_application_receives_the_end_of_a_body_once_and_then_the_disconnect(place: Place) -> None:
    before = place.app.messages
    answer = place.raw(post(b"abc", b"/listen") + LAST)
    assert statuses(answer) == [200, 200]
    assert b"listened" in answer
    assert 1 <= place.app.messages - before <= 2


def test_a_body_in_the_same_piece_does_not_count_as_head(place: Place) -> None:
    request = post(bytes(60_000), more=b"X-Filler: " + b"a" * 2_000 + b"\r\nConnection: close\r\n")
    with place.connect() as connection:
        connection.sendall(request[:1_500])
        until = time.monotonic() + WAIT_S
        while not any(each._parser.state is State.HEAD for each in list(place.connections.open)):
            assert time.monotonic() < until
        connection.sendall(request[1_500:])
        assert b'"length": 60000' in read_all(connection)


def test_an_http_1_0_keep_alive_request_is_answered_and_closed(place: Place) -> None:
    assert statuses(place.raw(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")) == [200]


def test_an_http_1_0_request_is_answered_and_closed(place: Place) -> None:
    assert statuses(place.raw(b"GET /a HTTP/1.0\r\n\r\n")) == [200]
    streamed = place.raw(b"GET /stream HTTP/1.0\r\n\r\n")
    assert streamed.endswith(b"\r\n\r\nonetwo")


def test_a_response_without_a_length_is_chunked(place: Place) -> None:
    answer = place.raw(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_a_head_request_gets_no_response_body(place: Place) -> None:
    answer = place.raw(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
    assert statuses(answer) == [200, 200]
    assert answer.count(b'"path"') == 1


def test_an_application_that_listens_for_the_disconnect_receives_it(place: Place) -> None:
    answer = place.raw(post(b"abc", b"/listen") + post(b"abc", b"/listen") + LAST)
    assert statuses(answer) == [200, 200, 200]


def test_head_and_body_of_a_small_response_are_sent_in_one_packet(place: Place) -> None:
    with place.connect() as connection:
        connection.sendall(GET)
        assert connection.recv(65536).endswith(b"}")


# Responses before the body has arrived


def test_a_response_before_a_short_body_keeps_the_connection(place: Place) -> None:
    answer = place.raw(post(bytes(100_000), b"/deaf") + post(b"abc") + LAST)
    assert statuses(answer) == [200, 200, 200]
    assert b'"length": 3' in answer


def test_a_response_before_a_long_body_arrives_and_ends_the_connection(place: Place) -> None:
    answer = place.raw(post(bytes(DISCARD_BYTES * 8), b"/deaf") + GET)
    assert statuses(answer) == [200]
    assert b"connection: close" in answer


CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked \r\n\r\n"


def test_a_response_before_the_end_of_a_chunked_body_ends_the_connection(place: Place) -> None:
    with place.connect() as connection:
        connection.sendall(CHUNKED % b"/deaf" + b"1\r\na\r\n")
        assert b"connection: close" in connection.recv(65536)
        with contextlib.suppress(ConnectionError):
            for _ in range(2 * DISCARD_BYTES // 2**16):
                connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
        assert read_all(connection) == b""


@pytest.mark.parametrize("path", [b"/deaf", b"/echo"])
def test_a_complete_chunked_body_keeps_the_connection(place: Place, path: bytes) -> None:
    empty, some = (CHUNKED % path + chunks + b"0\r\n\r\n" for chunks in (b"", b"1\r\na\r\n"))
    assert statuses(place.raw(empty + some + LAST)) == [200, 200, 200]


@pytest.mark.parametrize("more", [GET, b"nonsense\r\n\r\n"])
def test_nothing_is_answered_after_connection_close(more: bytes) -> None:
    async def scenario() -> None:
        async with on_this_loop() as place:
            loop, client = asyncio.get_running_loop(), place.connect()
            await place.until(lambda: place.connections.open)
            [connection] = place.connections.open
            # A small kernel buffer, so that the end of the response is still here when what follows arrives.
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            size = 70_000  # a smaller body would be waited for before the application sees anything
            client.send(b"POST /medium HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
            answer = await loop.sock_recv(client, 65536)
            request = connection._current
            assert request is not None
            while not request.answered:
                answer += await loop.sock_recv(client, 65536)
            await loop.sock_sendall(client, bytes(size - 10))
            await place.until(lambda: request.body_left == 10 or not place.connections.open)
            assert connection.transport.get_write_buffer_size() > 0
            client.send(bytes(10) + more)
            answer += await place.read_all(client)
            assert statuses(answer) == [200]
            assert b"connection: close" in answer
            assert place.app.seen == ["/medium"]
            assert place.rejected == []

    asyncio.run(scenario())


# Rejections

CODED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %b\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
REJECTED: dict[str, tuple[bytes, int, str]] = {
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "",
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, ""),
    "the same length twice": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, ""),
    "a length with a sign": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400, ""),
    "a negative length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc", 400, ""),
    "a huge length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", 400, ""),
    "an empty length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n", 400, ""),
    "a bad chunk": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", 400, ""),
    "a chunk with a sign": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n", 400, ""),
    "a huge chunk": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400, ""),
    "another transfer encoding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, ""),
    "gzip, chunked": (CODED % b"gzip, chunked", 400, ""),
    "gzip and chunked": (CODED % b"gzip\r\nTransfer-Encoding: chunked", 400, ""),
    "chunked and chunked": (CODED % b"chunked\r\nTransfer-Encoding: chunked", 400, ""),
    "chunked with more to it": (CODED % b"chunked;q=1", 400, ""),
    "chunked twice": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400, ""),
    "a bare line feed": (b"GET / HTTP/1.1\nHost: x\n\n", 400, ""),
    "a bare carriage return": (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", 400, ""),
    "a folded line": (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400, ""),
    "a NUL": (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400, ""),
    "a blank before the colon": (b"GET / HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n", 400, ""),
    "a blank in a name": (b"GET / HTTP/1.1\r\nHost: x\r\nX y: a\r\n\r\n", 400, ""),
    "no colon": (b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", 400, ""),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, ""),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, ""),
    "no version": (b"GET /\r\n\r\n", 400, ""),
    "another version": (b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", 400, ""),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
    "an unknown method": (b"EAT / HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
    "a method in small letters": (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
    "a target without a slash": (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
    "bytes over 127 in the target": (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
    "an escape that is not UTF-8": (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400, ""),
    "random bytes": (bytes(itertools.islice(itertools.cycle(range(7, 250, 13)), 500)), 400, ""),
    "a header of 20 kB": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, "headers_too_large"),
    "a header of 200 kB": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 431, "headers_too_large"),
    "a header without end": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000, 431, "headers_too_large"),
    "101 headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100 + b"\r\n", 431, "headers_too_large"),
    "an address of 9 kB": (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"),
    "an address without end": (b"GET /" + b"a" * 200_000, 414, "uri_too_long"),
    "a trailer of 2 MB": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 2_000_000,
        400,
        "too_many_chunks",
    ),
    "a chunk extension of 2 MB": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 2_000_000,
        400,
        "too_many_chunks",
    ),
    "65,537 chunks": (
        b"POST /deaf HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".replace(b"/deaf", b"/echo")
        + b"1\r\na\r\n" * 65_537
        + b"0\r\n\r\n",
        400,
        "too_many_chunks",
    ),
}


@pytest.mark.parametrize(("request_", "status", "code"), REJECTED.values(), ids=REJECTED)
def test_a_malformed_request_gets_one_error_and_the_connection_closes(
    place: Place, request_: bytes, status: int, code: str
) -> None:
    answer = place.raw(request_ + GET)
    assert statuses(answer) == [status]
    assert code_of(answer) == (code or "request_malformed")
    assert statuses(place.raw(LAST)) == [200]


@pytest.mark.parametrize("part", [b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"GET /"])
def test_an_endless_head_is_cut_off(place: Place, part: bytes) -> None:
    sent, until = 0, time.monotonic() + WAIT_S
    with place.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(part)
        while time.monotonic() < until:
            sent += connection.send(b"a" * 4096)
            time.sleep(0.001)  # what is sent within the server's patience is read, and takes processor time
    assert time.monotonic() < until, "the server continues to read"


def test_garbage_after_a_request_ends_the_connection_after_its_response(place: Place) -> None:
    answer = place.raw(post(b"abc") + b"nonsense\r\n\r\n" + GET)
    assert statuses(answer) == [200]
    assert b'"length": 3' in answer


def test_a_bug_in_the_application_ends_only_its_own_connection(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    for path in (b"/bug", b"/broken", b"/split"):
        answer = place.raw(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        assert b"Set-Cookie" not in answer
    assert statuses(place.raw(LAST)) == [200]
    assert len([record for record in caplog.records if record.exc_info]) == 3


# Deadlines


def test_a_client_that_sends_nothing_is_disconnected(quick: Place) -> None:
    with quick.connect() as connection:
        assert read_all(connection) == b""


def test_a_head_that_drips_in_too_slowly_is_rejected(quick: Place) -> None:
    with quick.connect() as connection:
        answer = drip(connection, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 1000)
    assert statuses(answer) == [408]
    assert code_of(answer) == "head_timeout"


def test_a_body_that_drips_in_too_slowly_is_rejected(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(post(b"").replace(b"Length: 0", b"Length: 1000"))
        answer = drip(connection, bytes(1000))
    assert statuses(answer) == [408]
    assert code_of(answer) == "body_timeout"


def test_the_second_request_of_a_connection_has_its_own_deadline(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(GET)
        assert statuses(connection.recv(65536)) == [200]
        answer = drip(connection, b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 1000)
    assert statuses(answer) == [408]


def test_an_idle_connection_is_closed_without_a_response(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(GET)
        assert statuses(read_all(connection)) == [200]


def test_an_empty_line_after_a_body_does_not_begin_a_request(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(post(b"abc"))
        assert statuses(connection.recv(65536)) == [200]
        connection.sendall(b"\r\n")
        assert read_all(connection) == b""


def test_a_client_that_does_not_read_its_response_is_disconnected(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(GET.replace(b"/a", b"/large"))
        assert quick.settles(0)


def test_a_client_that_does_not_read_the_end_of_its_response_is_disconnected(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(GET.replace(b"/a", b"/medium").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        left = MEDIUM
        while left > 40_000:
            left -= len(connection.recv(min(65536, left - 39_000)))
        assert quick.settles(0)


def test_a_response_that_is_being_read_when_the_server_stops_arrives_complete() -> None:
    app = App()
    listener = listen("127.0.0.1", 0)
    server = Server(Handlers(app), Connections(PATIENT), grace_s=WAIT_S)
    finished: list[bool] = []
    thread = threading.Thread(target=lambda: finished.append(server.run(listener)))
    with socket.create_connection(listener.getsockname(), timeout=WAIT_S) as connection:
        thread.start()
        connection.sendall(GET.replace(b"/a", b"/medium"))
        got = len(connection.recv(1000))
        server.stop()
        until = time.monotonic() + WAIT_S
        while server.connections.closing is False:
            assert time.monotonic() < until
        while piece := connection.recv(65536):
            got += len(piece)
    thread.join(WAIT_S)
    assert got > MEDIUM
    assert finished == [True]


def test_a_response_may_take_longer_than_any_deadline_of_the_client(quick: Place) -> None:
    with quick.connect() as connection:
        connection.sendall(GET.replace(b"/a", b"/wait"))
        with quick.connect() as silent:  # when this one is disconnected, the deadlines of the first would have passed
            read_all(silent)
        with quick.connect() as silent:
            read_all(silent)
        quick.app.let_go.set()
        assert b"waited" in connection.recv(65536)
    quick.app.let_go.clear()


def drip(connection: socket.socket, data: bytes) -> bytes:
    """Send a byte every few milliseconds until the server responds."""
    connection.settimeout(0.02)
    for byte in data:
        try:
            connection.sendall(bytes([byte]))
            found = connection.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return b"reset"
        connection.settimeout(WAIT_S)
        return found + read_all(connection)
    raise AssertionError("the server took it all")


# Disconnected clients


WAITED_FOR = {
    "alone": GET_WAIT,
    "a body before its end": post(bytes(100_000), b"/wait"),
    "the head of another after it": GET_WAIT + post(bytes(1000))[:-1000],
    "others after it": GET_WAIT + post(bytes(1000)) * 3,
    "many before it": GET * 12 + GET_WAIT,
    "large ones before it": post(bytes(100_000), b"/a") * 3 + GET_WAIT,
}


@pytest.mark.parametrize("sent", WAITED_FOR.values(), ids=WAITED_FOR)
def test_work_is_cancelled_when_the_client_disconnects(place: Place, sent: bytes) -> None:
    place.app.gone.clear()
    place.app.seen.clear()
    with place.connect() as connection:
        connection.sendall(sent)
        until = time.monotonic() + WAIT_S
        while place.app.seen[-1:] != ["/wait"]:
            assert time.monotonic() < until
    assert place.app.gone.wait(WAIT_S)


@pytest.mark.parametrize(("size", "few"), [(0, 10), (30_000, 4)])
def test_of_many_pipelined_requests_a_few_are_read_ahead_and_all_are_answered(size: int, few: int) -> None:
    async def scenario() -> None:
        async with on_this_loop() as place:
            loop, client = asyncio.get_running_loop(), place.connect(GET_WAIT)
            await place.until(lambda: place.app.seen)
            [connection] = place.connections.open
            for sent in range(1, 20):
                await loop.sock_sendall(client, post(bytes(size)))
                await place.until(lambda sent=sent: len(connection._pipeline) == sent or not connection.transport.is_reading())
                if not connection.transport.is_reading():
                    break
            assert sent <= few
            place.app.let_go.set()
            await loop.sock_sendall(client, LAST)
            answer = await place.read_all(client)
            assert statuses(answer) == [200] * (sent + 2)
            assert answer.count(b'"length": %d}' % size) == sent + (size == 0)

    asyncio.run(scenario())


LEFT_BEHIND = {
    "idle": (GET, "/a"),
    "answered for good": (LAST, "/last"),
    "rejected": (post(b"", b"/a") + b"nonsense\r\n\r\n", "/a"),
    "worked for": (GET_WAIT, "/wait"),
    "one in progress, half of another queued": (GET_WAIT + post(bytes(50_000))[:-1], "/wait"),
    "a small body to come": (post(bytes(100))[:-1], ""),
    "a large body to come": (post(bytes(90_000))[:-1], "/echo"),
    "a response that is not read": (GET.replace(b"/a", b"/large"), "/large"),
}


@pytest.mark.parametrize(("sent", "seen"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_a_closed_connection_is_freed_without_the_garbage_collector(sent: bytes, seen: str) -> None:
    async def scenario() -> None:
        async with on_this_loop() as place:
            client = place.connect()
            await place.until(lambda: place.connections.open)
            [connection] = place.connections.open
            gone = weakref.ref(connection)
            del connection
            await asyncio.get_running_loop().sock_sendall(client, sent)
            await place.until(lambda: place.app.seen == [seen] * bool(seen))
            client.close()
            await place.until(lambda: not place.connections.open)
            await place.until(lambda: gone() is None)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
