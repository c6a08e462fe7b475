"""Parse what a client sends into requests, within limits.

httptools splits the bytes; what arrives moves the parser through these states:

    BETWEEN --first byte--> HEAD --blank line--> BODY --last byte--> BETWEEN
       |                     |                    |
       +---------------------+--------------------+--rejected, or last response written--> DISCARD
       +---------------------+--------------------+--aborted, or connection lost---------> CLOSED

An offer to switch to another protocol (`Upgrade: h2c`) is ignored: the head is parsed again without it, from BETWEEN.

Invariant: after a rejection nothing more is parsed, so that later bytes are never treated as a request.
"""

from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any

import httptools

from edgeline.serve.http.transport.exchange import HIGH_WATER_BYTES, Request
from edgeline.serve.http.transport.rejection import Rejection

if TYPE_CHECKING:
    from edgeline.serve.http.transport.connection import Connection


class State(IntEnum):
    """What arrives from the client. Integers, because they are compared for every header."""

    BETWEEN = auto()
    """Nothing of a request, or of the next one."""
    HEAD = auto()
    """The rest of a head."""
    BODY = auto()
    """The rest of a body, if there is one. Whether it is still wanted is up to its request."""
    DISCARD = auto()
    """Anything; it is ignored, because the last response has been written or is on its way."""
    CLOSED = auto()
    """Nothing: the connection was aborted or lost."""


TRANSITIONS = {
    State.BETWEEN: {State.HEAD, State.DISCARD, State.CLOSED},
    State.HEAD: {State.BODY, State.BETWEEN, State.DISCARD, State.CLOSED},
    State.BODY: {State.BETWEEN, State.DISCARD, State.CLOSED},
    State.DISCARD: {State.DISCARD, State.CLOSED},
    State.CLOSED: {State.CLOSED},
}
IGNORING = (State.DISCARD, State.CLOSED)

FRAMING_BYTES = 2**20
"""Largest size of the chunk headers, chunk extensions and trailers of one body."""


class RequestParser:
    """Builds requests, and hands each to its connection when its head is complete."""

    def __init__(self, connection: "Connection") -> None:
        self.state = State.BETWEEN
        self.incoming: Request | None = None
        """The request whose head or body is arriving."""
        self.rejection: Rejection | None = None
        """Why nothing more is parsed. Other requests of the same piece of data are still to be handled."""
        self._connection = connection
        self._limits = connection.limits
        self._http: Any = httptools.HttpRequestParser(self)
        self._head_bytes = 0

    def enter(self, state: State) -> None:
        """Change the state."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state

    def feed(self, data: bytes) -> None:
        """Parse a piece of data."""
        if self.state is State.HEAD:
            # httptools buffers an unfinished line of any length. The first piece of a head, which may also be the end of a
            # body, is not counted: a piece is at most 256 kB.
            self._head_bytes += len(data)
        rest: memoryview | None = memoryview(data)
        try:
            while rest is not None:
                rest = self._parse(rest)
        except httptools.HttpParserError:
            if self.state not in IGNORING:
                self._reject(400, "request_malformed", "the request is malformed HTTP")
        self._check_size(len(data))

    def _parse(self, data: memoryview) -> memoryview | None:
        """Parse up to the end of the data, or of the first head that offers another protocol; return what follows that."""
        try:
            self._http.feed_data(data)
        except httptools.HttpParserUpgrade as end_of_head:
            if self.state in IGNORING:
                return None
            self._parse_without_offer()
            return data[end_of_head.args[0] :]
        return None

    def _parse_without_offer(self) -> None:
        """Parse the head again, without its offer, which a server may ignore (RFC 9110, section 7.8).

        httptools ends a request that has such an offer after its head, and would take its body for the next request.
        """
        request, ended = self.incoming, self._http
        assert request is not None
        first = b"%b %b HTTP/%b" % (ended.get_method(), request.url, ended.get_http_version().encode())
        lines = [b"%b: %b" % header for header in request.headers if header[0] != b"upgrade"]
        self.enter(State.BETWEEN)
        self._http = httptools.HttpRequestParser(self)
        self._http.feed_data(b"\r\n".join([first, *lines, b"", b""]))

    def close(self) -> None:
        """Release the connection and the request."""
        self.enter(State.CLOSED)
        self.incoming = self._http = None
        del self._connection  # each refers to the other

    def _reject(self, status: int, code: str, message: str) -> None:
        self.enter(State.DISCARD)
        self.rejection = Rejection(status, code, message)

    def _check_size(self, received: int) -> None:
        """Reject what httptools buffers or skips silently: endless lines, chunk extensions and trailers."""
        limit = self._limits.max_head_bytes
        if self.state is State.HEAD and self._head_bytes > limit + self._limits.max_url_bytes:
            self._reject(431, "headers_too_large", f"the head is over the limit of {limit:,} bytes")
        elif self.state is State.BODY:
            request = self.incoming
            assert request is not None
            request.wire_bytes += received
            if request.wire_bytes - request.body_bytes > FRAMING_BYTES:
                message = f"the chunk framing of the body is over the limit of {FRAMING_BYTES:,} bytes"
                self._reject(400, "too_many_chunks", message)

    # --- called by httptools --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line begins. An empty line before it does not count, and is skipped."""
        if self.state in IGNORING:
            return
        self.enter(State.HEAD)
        self.incoming = Request(self._connection)
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        if self.state in IGNORING:
            return
        assert self.incoming is not None
        self.incoming.url += url
        limit = self._limits.max_url_bytes
        if len(self.incoming.url) > limit:
            self._reject(414, "uri_too_long", f"the address is over the limit of {limit:,} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or a trailer line after a chunked body, which is dropped."""
        if self.state in IGNORING:
            return
        request, limits = self.incoming, self._limits
        assert request is not None
        request.head_bytes += len(name) + len(value) + 4
        if request.head_bytes > limits.max_head_bytes or len(request.headers) >= limits.max_headers:
            message = f"the headers are over the limit of {limits.max_head_bytes:,} bytes or {limits.max_headers} lines"
            self._reject(431, "headers_too_large", message)
        elif not request.head_complete:
            request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if self.state in IGNORING:
            return
        if self._http.should_upgrade() and self._http.get_method() != b"CONNECT":
            return  # httptools stops here, and the head is parsed again
        request = self.incoming
        assert request is not None
        if (problem := request.begin(self._http)) is not None:
            self._reject(400, "request_malformed", problem)
            return
        self.enter(State.BODY)
        if not self._connection.accept(request):
            problem = "the connection has too many requests in the pipeline; wait for responses"
            self._reject(400, "too_many_pipelined", problem)

    def on_chunk_header(self) -> None:
        """One more chunk of a chunked body."""
        if self.state in IGNORING:
            return
        assert self.incoming is not None
        self.incoming.chunks += 1
        limit = self._limits.max_chunks
        if self.incoming.chunks > limit:
            self._reject(400, "too_many_chunks", f"the body has more than {limit:,} chunks")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if self.state in IGNORING:
            return
        request = self.incoming
        assert request is not None
        request.take(data)
        if request.buffered > HIGH_WATER_BYTES and not request.answered:
            self._connection.pause_reading()

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self.state is not State.BODY:
            return  # rejected, or a head that is parsed again
        self.enter(State.BETWEEN)
        request, self.incoming = self.incoming, None
        assert request is not None
        self._connection.completed(request)
