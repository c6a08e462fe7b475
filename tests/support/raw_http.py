"""HTTP over plain sockets, and a server whose application misbehaves on request."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from starlette.types import Receive, Scope, Send

from edgeline.serve.http.transport.connection import Connection
from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers, affordable
from edgeline.serve.http.transport.exchange import Request
from edgeline.serve.http.transport.server import ACCEPTS, Server, listen

WAIT_S = 20.0
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
MEDIUM = 3 * 2**20 - 4096
"""The size of a response whose last piece is large."""
PATIENT = ConnectionLimits()


def post(body: bytes, path: bytes = b"/echo", more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), more, body)


@dataclass
class App:
    """Responds with the request; some paths misbehave on purpose."""

    seen: list[str] = field(default_factory=list)
    messages: int = 0
    gone: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.seen.append(path)
        if path == "/deaf":  # responds without reading
            await self.reply(send, b"deaf")
        elif path == "/wait":
            try:
                while not self.let_go.is_set():
                    await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                self.gone.set()
                raise
            await self.reply(send, b"waited")
        elif path == "/large":
            await self.reply(send, bytes(64 * 2**20))
        elif path == "/medium":
            await self.reply(send, bytes(MEDIUM))
        elif path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (b"one", b"", b"two"):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        elif path == "/broken":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"short"})
        elif path == "/split":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nSet-Cookie: b")]})
        elif path == "/listen":  # responds while it waits for the disconnect, as starlette's streams do
            listening = asyncio.create_task(self.listen(receive))
            await asyncio.sleep(0)
            await self.reply(send, b"listened")
            await listening
        elif path == "/bug":
            raise RuntimeError("a bug")
        else:
            body = b""
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
            request = {"path": path, "method": scope["method"], "query": scope["query_string"].decode(), "length": len(body)}
            await self.reply(send, json.dumps(request).encode())

    async def listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            self.messages += 1

    async def reply(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Place:
    """A running server."""

    port: int
    app: App
    connections: Connections

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def raw(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def settles(self, count: int) -> bool:
        """Wait until that many connections are open; return whether they are."""
        until = time.monotonic() + WAIT_S
        while len(self.connections.open) != count and time.monotonic() < until:
            self.raw(LAST)
        return len(self.connections.open) == count


def read_all(connection: socket.socket) -> bytes:
    pieces: list[bytes] = []
    with contextlib.suppress(ConnectionError):  # a reset after the response does not matter
        pieces.extend(iter(lambda: connection.recv(65536), b""))
    return b"".join(pieces)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def code_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    error = json.loads(body)
    assert error.keys() == {"error", "code", "request_id"}
    assert b"\r\nx-request-id: %b\r\n" % error["request_id"].encode() in head
    return str(error["code"])


@contextlib.contextmanager
def running(limits: ConnectionLimits, grace_s: float = 0.2) -> Iterator[Place]:
    app = App()
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(Handlers(app), Connections(limits, affordable(limits)), grace_s=grace_s)
    thread = threading.Thread(target=server.run, args=(listener,))
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S):
            pass
        yield Place(port, app, server.connections)
    finally:
        app.let_go.set()
        until = time.monotonic() + WAIT_S
        while server._loop is None:
            assert time.monotonic() < until
        server.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


@dataclass
class Loop:
    """A server on the test's own event loop: what clients do between two `await`s arrives at once."""

    app: App
    connections: Connections
    address: tuple[str, int]
    rejected: list[str]
    clients: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A client that has sent something."""
        client = self.clients.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.settimeout(WAIT_S)
        client.connect(self.address)
        client.setblocking(False)
        assert client.send(data) == len(data)
        return client

    async def read_all(self, client: socket.socket) -> bytes:
        """Everything that arrives before the end."""
        data, loop = b"", asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(loop.sock_recv(client, 65536), WAIT_S):
                data += piece
        return data

    async def until(self, true: Callable[[], object]) -> None:
        """Let the server run until a condition holds."""
        end = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < end
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def on_this_loop(
    limits: ConnectionLimits = PATIENT, fast_path: Callable[[Request], bool] = lambda request: False
) -> AsyncIterator[Loop]:
    app, connections, rejected = App(), Connections(limits), list[str]()
    connect = partial(Connection, connections, Handlers(app, fast_path, rejected.append))
    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0, backlog=ACCEPTS)
    place = Loop(app, connections, server.sockets[0].getsockname(), rejected)
    try:
        with place.clients:
            yield place
    finally:
        app.let_go.set()
        server.close()
        await place.until(lambda: not connections.open)
