"""One client's connection: HTTP/1.1 in, an ASGI application's answers out, every deadline and cap kept.

httptools parses; what is ours is how this fails. A client gets so long for a request's head, for its body and for taking its
answer, whether it sends a byte now and then or nothing, and what it may make the server hold is bounded at each step:

    idle --first byte--> head --complete--> body --complete--> work --answered--> idle
      75 s                5 s                15 s               the application's deadline

Invariants: requests of one connection are answered in the order they came; a refused request ends its connection, so that
nobody ever takes what follows for a request; and whatever arrives here, only this connection can be harmed by it.
"""

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import httptools

from edgeline.serve.http.transport.exchange import DISCARD_BYTES, HIGH_WATER_BYTES, Request, status_line

if TYPE_CHECKING:
    from edgeline.serve.http.transport.connections import Connections, Handlers

FRAMING_BYTES = 2**20
"""What chunk sizes, chunk extensions and trailers of one body may take."""
AHEAD = 8
"""Requests in line behind the one that is worked on, from which on no more are read."""
LINGER_S = 2.0
"""How long a client may go on sending a body that was answered unread, before the connection closes."""


class Connection(asyncio.Protocol):
    """Parses requests as they come and runs the application on one at a time."""

    def __init__(self, connections: "Connections", handlers: "Handlers") -> None:
        self.connections = connections
        self.handlers = handlers
        self.limits = connections.limits
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.peer: tuple[str, int] | None = None
        self.scheme = "http"
        self.can_write = asyncio.Event()
        self.can_write.set()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._late: Callable[[], None] | None = None
        """What is to be done when the client has not come by then; None while it is the client who waits."""
        self._write_timer: asyncio.TimerHandle | None = None
        self._pipeline: deque[Request] = deque()
        self._current: Request | None = None
        self._reading: Request | None = None
        self._refusal: tuple[int, str, str] | None = None
        self._fresh: Request | None = None
        """A request that nobody was given yet: all that came with its head is looked at first, and a small body waited for."""
        self._deaf = False
        """The last answer is written, or will be: what still comes from the client is none of a request."""
        self._started = self._timed = self._in_line = self._ended = self._paused = False
        self._head_bytes = 0

    # --- the transport's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        transport = cast(asyncio.Transport, transport)  # of a stream; other loops' are no subclass
        self.transport = transport
        if not self.connections.make_room():
            self._tell(503, "too_many_connections", "all connections are busy with requests; come again later")
            self._deaf = True
            transport.close()  # without the usual patience: it would be one more connection than there may be
            return
        peer = transport.get_extra_info("peername")
        self.peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.connections.open.add(self)
        self._wait(self.limits.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything; work for this client that still waits is dropped."""
        self._deaf = self._ended = True
        self.connections.open.discard(self)
        self._wait_no_more()
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._pipeline.clear()
        self._parser = None  # they hold each other
        if self._current is not None:
            self._current.abandon()
        self._current = self._fresh = self._reading = None  # a request and its connection hold each other too

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._deaf:
            return
        if self._started:
            # The parser keeps an unfinished line whatever its length. The first piece of a head, which may be the end of a
            # body too, is not counted: a piece is 256 kB at most.
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._close_after_current()
        except httptools.HttpParserError:
            if not self._deaf:
                self._object(400, "request_malformed", "the request is malformed HTTP")
        if (fresh := self._fresh) is not None and (self._refusal is None or fresh is not self._reading):
            if not fresh.is_to_be_whole:
                self._fresh = None
                self._answer(fresh)
            elif not fresh.timed:
                fresh.timed = True
                self._wait(self.limits.body_s, self._body_is_late)
        elif self._started and not self._timed and self._current is None:
            self._time_head()
        if self._refusal is not None:
            self._refuse(*self._refusal)
        elif self._started and self._head_bytes > self.limits.max_head_bytes + self.limits.max_url_bytes:
            self._refuse(431, "headers_too_large", f"the head is over the limit of {self.limits.max_head_bytes:,} bytes")
        elif (request := self._reading) is not None and request.head_complete:
            # Chunk extensions and trailers, which the parser passes over in silence.
            request.wire_bytes += len(data)
            if request.wire_bytes - request.body_bytes > FRAMING_BYTES:
                self._refuse(
                    400, "too_many_chunks", f"the body's chunks take over {FRAMING_BYTES:,} bytes beside what is in them"
                )
        if self._pipeline and self._is_ahead:
            self._pause()

    def eof_received(self) -> bool:
        """Take the end of what a client sends for the end of the client: one that has gone looks the same from here."""
        return False

    def pause_writing(self) -> None:
        """The client takes its answer slowly: wait, but not for ever."""
        self.can_write.clear()
        self._write_timer = self.loop.call_later(self.limits.write_s, self.drop)
        self.connections.slow[self] = None

    def resume_writing(self) -> None:
        """The client has taken enough; where it still owes its body, it is waited for in the same place as before."""
        self.can_write.set()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
            if self._late is None:
                self.connections.slow.pop(self, None)

    # --- the parser's side ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line begins; an empty line before it does not, and is passed over in silence."""
        if self._deaf:
            return
        self._reading = Request(self)
        self._started, self._timed, self._head_bytes = True, False, 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        if self._deaf:
            return
        assert self._reading is not None
        self._reading.url += url
        if len(self._reading.url) > self.limits.max_url_bytes:
            self._object(414, "uri_too_long", f"the address is over the limit of {self.limits.max_url_bytes:,} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or after a chunked body a trailer, which nobody wants."""
        if self._deaf:
            return
        request = self._reading
        assert request is not None
        request.head_bytes += len(name) + len(value) + 4
        if request.head_bytes > self.limits.max_head_bytes or len(request.headers) >= self.limits.max_headers:
            limits = f"{self.limits.max_head_bytes:,} bytes or {self.limits.max_headers} lines"
            self._object(431, "headers_too_large", f"the headers are over the limit of {limits}")
        elif not request.head_complete:
            request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole: hand the request to the application, or put it in line."""
        if self._deaf:
            return
        request = self._reading
        assert request is not None
        if (problem := request.begin(self._parser)) is not None:
            self._object(400, "request_malformed", problem)
            return
        self._started = False
        if self._current is None:
            self._current = self._fresh = request
        elif len(self._pipeline) < self.limits.max_pipelined:
            self._pipeline.append(request)
        else:
            problem = "the connection has more requests in line than are taken; wait for answers"
            self._object(400, "too_many_pipelined", problem)

    def on_chunk_header(self) -> None:
        """One more chunk of a chunked body."""
        if self._deaf:
            return
        assert self._reading is not None
        self._reading.chunks += 1
        if self._reading.chunks > self.limits.max_chunks:
            self._object(400, "too_many_chunks", f"the body has more than {self.limits.max_chunks:,} chunks")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if self._deaf:
            return
        assert self._reading is not None
        self._reading.take(data)
        if self._reading.buffered > HIGH_WATER_BYTES and not self._reading.answered:
            self._pause()

    def on_message_complete(self) -> None:
        """The body is whole."""
        if self._deaf:
            return
        request, self._reading = self._reading, None
        assert request is not None
        self._wait_no_more()
        request.complete()
        if request is self._current:
            self.resume_reading()  # or the end of the client would not be noticed
            if request.answered:
                self._next()

    # --- the requests' side ---------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come."""
        return self._current is None and self._reading is None and not self._started

    def answered(self, request: Request, keep_alive: bool) -> None:
        """Go on after an answer: to the next request, to the rest of this one's body, or to the end."""
        if self._ended:
            return
        if request.body_complete:
            if keep_alive:
                self._next()
            else:
                self.end()
            return
        # Closing while the client still sends would reset the connection, and might destroy the answer before it was read.
        # So what still comes is thrown away; a short rest for the sake of the connection, a long one for a moment.
        self.resume_reading()
        if not keep_alive or request.body_left > DISCARD_BYTES:
            request.keep_alive = False
            self._wait(LINGER_S, self.drop)

    def fileno(self) -> int:
        """The socket's file descriptor, -1 when it is closed."""
        return int(self.transport.get_extra_info("socket").fileno())

    def resume_reading(self) -> None:
        """Let the client send on."""
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def end(self) -> None:
        """End the connection as soon as the client has taken what was written; it is not waited for without end."""
        self._deaf = True
        self.transport.close()
        self._wait(self.limits.write_s, self.drop)

    def evict(self) -> None:
        """Close the connection to make room for a new one."""
        self.handlers.on_rejected("connection_evicted")
        self.drop()

    def drop(self) -> None:
        """End the connection at once."""
        if not self._ended:
            self._deaf = self._ended = True  # an answer that comes before the transport has closed finds it so
            self._wait_no_more()
            self.connections.slow.pop(self, None)
            self.transport.abort()

    def _answer(self, request: Request) -> None:
        """Have a request answered that is the current one."""
        if request.body_complete and self.can_write.is_set() and self.handlers.fast_path(request):
            return
        request.go(self.handlers.app)
        if not request.body_complete:
            self._wait(self.limits.body_s, self._body_is_late)

    def _next(self) -> None:
        """Start the next request of the pipeline, or wait for one."""
        current, self._current = self._current, None
        if self._ended:
            return
        if current is not None and not current.keep_alive:
            self.end()
        elif self._pipeline:
            request = self._current = self._pipeline.popleft()
            # Not by the short way, where one answer would begin the next within it, up to a hundred deep.
            request.go(self.handlers.app)
            if not request.body_complete:
                self._wait(self.limits.body_s, self._body_is_late)
            elif not self._is_ahead:
                self.resume_reading()
        else:
            self.resume_reading()
            if self.connections.closing and not self._started:
                self.end()
            elif self._started:
                self._time_head()
            else:
                self._wait(self.limits.idle_s, self.drop)

    def _time_head(self) -> None:
        self._timed = True
        self._wait(self.limits.head_s, self._head_is_late)

    @property
    def _is_ahead(self) -> bool:
        """Whether so much is in line that no more is read, though the end of the client is not noticed then."""
        return len(self._pipeline) > AHEAD or sum(each.buffered for each in self._pipeline) > HIGH_WATER_BYTES

    def _close_after_current(self) -> None:
        for request in [self._current, *self._pipeline]:
            if request is not None:
                request.keep_alive = False

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _wait(self, within_s: float, late: Callable[[], None]) -> None:
        """Wait for one thing from the client; there is never more than one."""
        self._wait_no_more()
        line = self.connections.silent if self._current is None else self.connections.slow
        line[self] = None
        self._late, self._due, self._in_line = late, self.loop.time() + within_s, False
        if self._timer is None or self._timer.when() > self._due:
            self._set_timer()

    def _wait_no_more(self) -> None:
        """The timer stays: most often the next wait is a longer one, and then it need not be set again."""
        self.connections.silent.pop(self, None)
        if self._write_timer is None:
            self.connections.slow.pop(self, None)
        self._late = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._late is None:
            return
        now = self.loop.time()
        if now >= self._due and not self._in_line:
            self._due, self._in_line = self.connections.turn(now), True
        if now < self._due:
            self._set_timer()
        else:
            self._late()

    def _head_is_late(self) -> None:
        if self.is_idle:
            self.handlers.on_rejected("head_timeout")
            self.drop()  # it never said anything, so it is told nothing
        else:
            self._refuse(408, "head_timeout", f"the request's head was not whole after {self.limits.head_s:g} s")

    def _body_is_late(self) -> None:
        self._refuse(408, "body_timeout", f"the request's body was not whole after {self.limits.body_s:g} s")

    def _object(self, status: int, code: str, message: str) -> None:
        """Note, within the parser, what is to be refused after it: other requests of the same piece are answered first."""
        self._deaf, self._refusal = True, (status, code, message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what no application sees, and end the connection."""
        if self.transport.is_closing():
            return  # the answer that went before has said that it was the last
        self._deaf = True
        self._pipeline.clear()
        self.resume_reading()  # or the end of the client would not be noticed
        if self._current is not None and (self._current is not self._reading or self._current.started):
            # An earlier request of this connection is still being answered. It is finished, then the connection ends:
            # an answer to the bad one would be one to which it does not know the question.
            self.handlers.on_rejected(code)
            self._close_after_current()
            if self._current.started and not self._current.body_complete:
                self.drop()
            return
        if self._current is not None:
            self._current.abandon()
        self._tell(status, code, message)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER_S, self.drop)

    def _tell(self, status: int, code: str, message: str) -> None:
        """Write the answer of a refusal."""
        self.handlers.on_rejected(code)
        request_id = secrets.token_hex(8)
        body = json.dumps({"error": message, "code": code, "request_id": request_id}).encode()
        head = b"content-type: application/json\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n"
        head += b"x-request-id: %b\r\n" % request_id.encode()
        if status == 503:
            head += b"retry-after: 1\r\n"
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(status_line(status) + self.connections.date() + head + length + body)
