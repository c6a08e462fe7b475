"""One client's connection: HTTP/1.1 in, the responses of an ASGI application out, within deadlines and limits.

A client has limited time for a request's head, for its body and for reading its response, whether it sends a byte now and then
or nothing, and each step bounds what it can make the server hold in memory. `RequestParser` has the states of what arrives;
this module decides what the connection waits for, and which request is answered next:

    nothing --head complete--> pending --small body complete--> current --answered--> next of the pipeline, or nothing
     75 s        5 s                          15 s             the application's deadline

A client that ends its half of the connection (a half-close) still gets the responses to the requests that are complete. TCP
does not show whether it has also gone: its system rejects data only once some is sent. So if the response takes longer than
`PROBE_S`, a `100 Continue` is sent, which every HTTP/1.1 client has to accept, and if that is rejected, the work is cancelled.

Invariants: requests of one connection are answered in the order in which they came; a rejected request ends its connection; and
nothing that arrives here can harm any other connection.
"""

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, cast

from edgeline.serve.http.transport.deadline import Deadline, Waiting
from edgeline.serve.http.transport.exchange import DISCARD_BYTES, HIGH_WATER_BYTES, Request
from edgeline.serve.http.transport.rejection import Rejection
from edgeline.serve.http.transport.request_parser import IGNORING, RequestParser, State

if TYPE_CHECKING:
    from edgeline.serve.http.transport.connections import Connections, Handlers


READ_AHEAD = 8
"""Requests in the pipeline behind the current one; with more, reading pauses."""
PROBE_S = 0.5
"""After a client's half-close, the time until it is checked whether the client is still there, and between two checks."""
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGER_S = 2.0
"""How long a client may go on sending a body that was answered unread, before the connection closes."""


class Connection(asyncio.Protocol):
    """Parses requests as they arrive and has them answered one at a time."""

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
        self._parser = RequestParser(self)
        self._deadline = Deadline(connections.next_eviction_time, self._on_timeout)
        self._write_timer: asyncio.TimerHandle | None = None
        """Runs while the client does not read its response."""
        self._current: Request | None = None
        """The request that is being answered."""
        self._pipeline: deque[Request] = deque()
        """Those that follow it."""
        self._pending_dispatch: Request | None = None
        """The current request until it is dispatched: first, all that came with its head is parsed, and a small body is
        waited for."""
        self._reading_paused = False
        self._probe_timer: asyncio.TimerHandle | None = None
        """Runs after the client's half-close."""

    # --- called by the transport ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        transport = cast(asyncio.Transport, transport)  # of a stream; other loops' are not a subclass
        self.transport = transport
        if not self.connections.make_room():
            self._parser.enter(State.DISCARD)
            self._write_error(Rejection(503, "too_many_connections", "all connections are busy; try again later"))
            transport.close()  # without lingering: it would be one connection more than the limit
            return
        peer = transport.get_extra_info("peername")
        self.peer = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.connections.open.add(self)
        self._wait(Waiting.FIRST_BYTE, self.limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything; work for this client that is still queued is cancelled."""
        self._parser.close()
        self.connections.open.discard(self)
        self._stop_waiting()
        self._deadline.close()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self.resume_writing()
        self._pipeline.clear()
        if self._current is not None:
            self._current.abandon()
        self._current = self._pending_dispatch = None  # a request and its connection refer to each other

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        parser = self._parser
        if parser.state in IGNORING:
            return
        parser.feed(data)
        pending = self._pending_dispatch
        if pending is not None and (parser.rejection is None or pending is not parser.incoming):
            self._dispatch_or_wait(pending)
        elif parser.state is State.HEAD and self._current is None and self._deadline.waiting is not Waiting.HEAD:
            self._wait(Waiting.HEAD, self.limits.head_s)
        if parser.rejection is not None:
            self._reject(parser.rejection)
        if self._pipeline and self._is_ahead:
            self.pause_reading()

    def eof_received(self) -> bool:
        """Keep the connection after the client's half-close if there are complete requests to answer; else close it."""
        current, incoming = self._current, self._parser.incoming
        if self._pipeline and self._pipeline[-1] is incoming:
            self._pipeline.pop()
        # asyncio cannot write after the end of a client's TLS stream.
        if current is None or not current.body_complete or current.answered or self.scheme == "https":
            return False
        self._parser.enter(State.DISCARD)
        last = self._pipeline[-1] if self._pipeline else current
        last.keep_alive = False
        self._probe_timer = self.loop.call_later(PROBE_S, self._probe, current)
        return True

    def pause_writing(self) -> None:
        """The client reads its response slowly: wait, for a limited time."""
        self.can_write.clear()
        self._write_timer = self.loop.call_later(self.limits.write_s, self.drop)
        self.connections.slow[self] = None

    def resume_writing(self) -> None:
        """The client has read enough; if the rest of its body is awaited, the connection keeps its place in line."""
        self.can_write.set()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
            if self._deadline.waiting is None:
                self.connections.slow.pop(self, None)

    # --- called by the parser -------------------------------------------------------------------------------------------

    def accept(self, request: Request) -> bool:
        """Make a request whose head is complete the current one, or the last of the pipeline; False if that is full."""
        if self._current is None:
            self._current = self._pending_dispatch = request
            return True
        if len(self._pipeline) == self.limits.max_pipelined:
            return False
        self._pipeline.append(request)
        return True

    def completed(self, request: Request) -> None:
        """Continue after the end of a request's body."""
        self._stop_waiting()
        request.complete()
        if request is self._current:
            self.resume_reading()  # or a disconnect would go unnoticed
            if request.answered:
                self._next()

    def close_after_current(self) -> None:
        """Have the responses to the requests that are here end the connection."""
        for request in [self._current, *self._pipeline]:
            if request is not None:
                request.keep_alive = False

    def pause_reading(self) -> None:
        """Read nothing more from the client for now."""
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    # --- called by requests and by the table of connections -------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no part of a request is here."""
        return self._current is None and self._parser.incoming is None

    def answered(self, request: Request, keep_alive: bool) -> None:
        """Continue after a response: with the next request, the rest of this one's body, or the end of the connection."""
        if self._parser.state is State.CLOSED:
            return
        if request.body_complete:
            if keep_alive:
                self._next()
            else:
                self.end()
            return
        # Closing while the client still sends would reset the connection, and might destroy the response before it is read.
        # So the rest is discarded: a short one to keep the connection, a long one only for a moment.
        self.resume_reading()
        if not keep_alive or request.body_left > DISCARD_BYTES:
            request.keep_alive = False
            self._wait(Waiting.CLOSE, LINGER_S)

    def fileno(self) -> int:
        """The socket's file descriptor, -1 when it is closed."""
        return int(self.transport.get_extra_info("socket").fileno())

    def resume_reading(self) -> None:
        """Read more from the client, if reading was paused."""
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    def end(self) -> None:
        """Close the connection as soon as the client has read everything, or its time for that is over."""
        self._parser.enter(State.DISCARD)
        self.transport.close()
        self._wait(Waiting.CLOSE, self.limits.write_s)

    def evict(self) -> None:
        """Close the connection at once, to make room for a new one."""
        self.handlers.on_rejected("connection_evicted")
        self.drop()

    def drop(self) -> None:
        """Close the connection at once."""
        if self._parser.state is not State.CLOSED:
            self._parser.enter(State.CLOSED)  # so that a response that comes before the transport has closed is ignored
            self._stop_waiting()
            self.connections.slow.pop(self, None)
            self.transport.abort()

    # --- after a half-close -----------------------------------------------------------------------------------------------

    def _probe(self, unsent: Request | None) -> None:
        """Send data to a client that has not had any since its half-close; drop the connection if data was rejected."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.drop()
            return
        if unsent is not None and unsent is self._current and unsent.may_get_interim_response:
            self.transport.write(PROBE)
        self._probe_timer = self.loop.call_later(PROBE_S, self._probe, None)

    # --- the order of requests ------------------------------------------------------------------------------------------

    def _dispatch_or_wait(self, request: Request) -> None:
        """Have the current request answered, unless the rest of a small body is worth waiting for."""
        if not request.awaits_small_body:
            self._pending_dispatch = None
            if request.body_complete and self.can_write.is_set() and self.handlers.fast_path(request):
                return
            self._run_application(request)
        elif self._deadline.waiting is not Waiting.BODY:
            self._wait(Waiting.BODY, self.limits.body_s)

    def _run_application(self, request: Request) -> None:
        request.go(self.handlers.app)
        if not request.body_complete:
            self._wait(Waiting.BODY, self.limits.body_s)

    def _next(self) -> None:
        """Start the next request of the pipeline, or wait for one."""
        current, self._current = self._current, None
        if self._parser.state is State.CLOSED:
            return
        if current is not None and not current.keep_alive:
            self.end()
        elif self._pipeline:
            request = self._current = self._pipeline.popleft()
            # Not by the fast path: each response would begin the next one within it, up to a hundred deep.
            self._run_application(request)
            if request.body_complete and not self._is_ahead:
                self.resume_reading()
        else:
            self.resume_reading()
            if self._parser.state is State.HEAD:
                self._wait(Waiting.HEAD, self.limits.head_s)
            elif self.connections.closing:
                self.end()
            else:
                self._wait(Waiting.NEXT_REQUEST, self.limits.idle_s)

    @property
    def _is_ahead(self) -> bool:
        """Whether the pipeline is so long that reading pauses, although a disconnect goes unnoticed then."""
        return len(self._pipeline) > READ_AHEAD or sum(each.buffered for each in self._pipeline) > HIGH_WATER_BYTES

    # --- deadlines ------------------------------------------------------------------------------------------------------

    def _wait(self, waiting: Waiting, within_s: float) -> None:
        """Wait for one thing from the client, and for nothing else; until then the connection may be evicted."""
        self._stop_waiting()
        line = self.connections.silent if self._current is None else self.connections.slow
        line[self] = None
        self._deadline.start(waiting, within_s)

    def _stop_waiting(self) -> None:
        self.connections.silent.pop(self, None)
        if self._write_timer is None:
            self.connections.slow.pop(self, None)
        self._deadline.waiting = None  # its timer keeps running

    def _on_timeout(self, waiting: Waiting) -> None:
        if waiting is Waiting.HEAD:
            message = f"the request's head was not complete after {self.limits.head_s:g} s"
            self._reject(Rejection(408, "head_timeout", message))
        elif waiting is Waiting.BODY:
            message = f"the request's body was not complete after {self.limits.body_s:g} s"
            self._reject(Rejection(408, "body_timeout", message))
        else:
            if waiting is Waiting.FIRST_BYTE:
                self.handlers.on_rejected("head_timeout")
            self.drop()

    # --- rejections -----------------------------------------------------------------------------------------------------

    def _reject(self, rejection: Rejection) -> None:
        """Send an error response that no application sees, and end the connection."""
        if self.transport.is_closing():
            return  # the previous response announced that it was the last
        self._parser.enter(State.DISCARD)
        self._pipeline.clear()
        self.resume_reading()  # or a disconnect would go unnoticed
        if self._current is not None and (self._current is not self._parser.incoming or self._current.started):
            # An earlier request of this connection is still being answered. It is completed, then the connection ends: the
            # client could not tell which request an error response belongs to.
            self.handlers.on_rejected(rejection.code)
            self.close_after_current()
            if self._current.started and not self._current.body_complete:
                self.drop()
            return
        if self._current is not None:
            self._current.abandon()
        self._write_error(rejection)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(Waiting.CLOSE, LINGER_S)

    def _write_error(self, rejection: Rejection) -> None:
        self.handlers.on_rejected(rejection.code)
        self.transport.write(rejection.response(self.connections.date()))
