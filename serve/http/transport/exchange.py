"""One request and its response: the ASGI side of a connection.

A `Request` interprets a head, buffers the body until the application reads it, and writes the response. Its connection reads
from the client, keeps the deadlines, and decides which request is next.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp, Message

if TYPE_CHECKING:
    from edgeline.serve.http.transport.connection import Connection

LOG = logging.getLogger(__name__)

HIGH_WATER_BYTES = 64 * 2**10
"""How much of a body is buffered for the application before reading from the client pauses."""
DISCARD_BYTES = 2**20
"""How much of an unwanted body is read and discarded to keep the connection."""
UNKNOWN = 2**62
"""What is left of a chunked body before its end has arrived: more than is ever discarded."""
UNBODIED = (204, 304)


def status_line(status: int) -> bytes:
    """The first line of a response."""
    return b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode())


STATUS_LINES = {status.value: status_line(status) for status in HTTPStatus}


@dataclass(eq=False, slots=True)
class Request:
    """One request and its response."""

    connection: "Connection"
    url: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    method: str = ""
    head_bytes: int = 0
    chunks: int = 0
    wire_bytes: int = 0
    body_bytes: int = 0
    head_complete: bool = False
    body_complete: bool = False
    body_left: int = 0
    keep_alive: bool = False
    started: bool = False
    answered: bool = False
    task: asyncio.Task[None] | None = None
    buffered: int = 0
    _body: list[bytes] = field(default_factory=list)
    _came: asyncio.Event | None = None
    _gone: bool = False
    _delivered: bool = False
    """Whether the application has the whole body; a further `receive` waits for the client to disconnect."""
    _wants_continue: bool = False
    _version: str = ""
    _path: str = ""
    _raw_path: bytes = b""
    _query: bytes = b""
    _dropped: Callable[[], None] | None = None
    """Called when the client disconnects, while something other than an application answers."""
    _head: bytes = b""
    _length_left: int | None = None
    _chunked: bool = False

    def begin(self, parser: httptools.HttpRequestParser) -> str | None:
        """Interpret the head.

        Returns:
            What is wrong with it, or None.
        """
        version = self._version = parser.get_http_version()
        self.method = parser.get_method().decode("ascii")
        hosts, length, chunked, expects = 0, b"0", False, False
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                if chunked or value.strip().lower() != b"chunked":
                    return "chunked is the only Transfer-Encoding that is accepted"
                chunked = True
            elif name == b"expect":
                expects = expects or value.lower() == b"100-continue"
        if self.method == "CONNECT":
            return "CONNECT is for proxies, which this server is not"
        if version not in ("1.0", "1.1"):
            return "unsupported HTTP version; this server supports 1.1"
        if hosts != 1 and (version == "1.1" or hosts):
            return "the request must have exactly one Host header"
        try:
            target = httptools.parse_url(self.url)
            self._raw_path, self._query = target.path or b"/", target.query or b""
            self._path = unquote(self._raw_path.decode("ascii"), errors="strict")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            return "the address is not a valid URL"
        if not length.isdigit():
            return "Content-Length must be a whole number"
        self.body_left = UNKNOWN if chunked else int(length[:18])
        self.keep_alive = version == "1.1" and parser.should_keep_alive()
        self._wants_continue = expects and version == "1.1"
        self.head_complete = True
        return None

    @property
    def may_get_interim_response(self) -> bool:
        """Whether a `100 Continue` may still be sent: not to an HTTP/1.0 client, and not after the response has begun."""
        return self._version == "1.1" and not self.started

    @property
    def awaits_small_body(self) -> bool:
        """Whether the rest of the body is small enough to wait for before the request is dispatched."""
        return not self.body_complete and self.buffered + self.body_left <= HIGH_WATER_BYTES and not self._wants_continue

    def take(self, data: bytes) -> None:
        """Buffer a part of the body."""
        self.body_left = max(0, self.body_left - len(data))
        self.body_bytes += len(data)
        if not self.answered:
            self._body.append(data)
            self.buffered += len(data)
            if self._came is not None:
                self._came.set()

    def complete(self) -> None:
        """The body is complete."""
        self.body_complete, self.body_left = True, 0
        if self._came is not None:
            self._came.set()

    def abandon(self) -> None:
        """The client has disconnected: cancel the work for it."""
        self._gone = True
        self._body.clear()
        if self._came is not None:
            self._came.set()
        if self.task is not None and not self.answered:
            self.task.cancel()
        if self._dropped is not None:
            self._dropped()
            self._dropped = None

    # --- answered by an application -------------------------------------------------------------------------------------

    def go(self, app: ASGIApp, state: dict[str, Any] | None = None) -> None:
        """Run an application in a task."""
        self._dropped = None
        self.task = self.connection.loop.create_task(self._run(app, state or {}))

    async def _run(self, app: ASGIApp, state: dict[str, Any]) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": self._version,
            "server": self.connection.transport.get_extra_info("sockname")[:2],
            "client": self.connection.peer,
            "scheme": self.connection.scheme,
            "method": self.method,
            "root_path": "",
            "path": self._path,
            "raw_path": self._raw_path,
            "query_string": self._query,
            "headers": self.headers,
            "state": state,
        }
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._gone:
                self.connection.drop()
            return
        except Exception:  # the edge of the process; the application has already sent a 500 if it still could
            if self._gone:
                return
            LOG.exception("a request failed after its response began")
            self.connection.drop()
            return
        if not self.answered and not self._gone:
            LOG.error("the application returned without a complete response")
            self.connection.drop()

    async def receive(self) -> Message:
        """ASGI's `receive`: what is buffered of the body, as soon as there is something; after its end, the disconnect."""
        if self._wants_continue and not self.started:
            self._wants_continue = False
            self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._gone and not self.answered and not self._body and (self._delivered or not self.body_complete):
            self._came = self._came or asyncio.Event()
            self._came.clear()
            if not self.body_complete:
                self.connection.resume_reading()
            await self._came.wait()
        if self._gone or self.answered:
            return {"type": "http.disconnect"}
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self.buffered = 0
        self._delivered = self.body_complete
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    async def send(self, message: Message) -> None:
        """ASGI's `send`: the head is buffered until there is a part of the body, so that both leave in one packet."""
        if not self.connection.can_write.is_set():
            await self.connection.can_write.wait()
        if self._gone:
            raise ConnectionResetError("the client has disconnected")
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", []))
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.method == "HEAD":
            body = b""
        elif self._chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        elif self._length_left is not None:
            self._length_left -= len(body)
            if self._length_left < 0 or (self._length_left and not more):
                raise RuntimeError(f"a response differs from its Content-Length by {-self._length_left} bytes")
        if self._head or body:
            head, self._head = self._head, b""
            await self._write(head + body)
        if not more:
            self._end()

    async def _write(self, data: bytes) -> None:
        """Write; a large response piece by piece, so that the client has its time for each and little is buffered here."""
        for start in range(0, len(data), HIGH_WATER_BYTES):
            if start and not self.connection.can_write.is_set():
                await self.connection.can_write.wait()
            if self._gone:
                raise ConnectionResetError("the client has disconnected")
            self.connection.transport.write(data[start : start + HIGH_WATER_BYTES] if len(data) > HIGH_WATER_BYTES else data)

    # --- answered by the fast path --------------------------------------------------------------------------------------

    def body(self) -> bytes:
        """The body of a complete request."""
        if len(self._body) != 1:
            self._body = [b"".join(self._body)]
        return self._body[0]

    def hand_over(self, dropped: Callable[[], None]) -> None:
        """Leave the response to the caller, which calls `reply` or `go`; `dropped` is called if the client disconnects."""
        self._body.clear()
        self._dropped = dropped

    def reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole response, to any method but HEAD; `headers` must have its Content-Length."""
        self._dropped = None
        self._start(status, headers)
        self.connection.transport.write(self._head + body)
        self._head = b""
        self._end()

    # --- both -----------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.answered = True
        self._body.clear()
        if self._came is not None:
            self._came.set()
        self.connection.answered(self, self.keep_alive)

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        lines = [STATUS_LINES[status], self.connection.connections.date()]
        for name, value in headers:
            if b"\n" in value or b"\r" in value or b"\0" in value:
                raise RuntimeError(f"the header {name!r} of a response contains a line break")
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._length_left = int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
        if self._length_left is None and status not in UNBODIED:
            self._chunked = self._version == "1.1"
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if self.connection.connections.closing or self.body_left > DISCARD_BYTES or self._wants_continue:
            self.keep_alive = False  # a client that waits for a 100 may send the body after this response, or not
        if not self.keep_alive and (b"connection", b"close") not in headers:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
