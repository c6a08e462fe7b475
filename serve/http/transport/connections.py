"""The open connections of a server: what one may cost, how many there may be, and which one is evicted for a new one.

Invariant: there are never more than `max_open`, except for those that are being closed. Every connection that waits for its
client is in `silent` or in `slow`, so that stalled clients can be evicted and do not block others.
"""

import contextlib
import resource
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from email.utils import formatdate

from starlette.types import ASGIApp

from edgeline.serve.http.transport.connection import Connection
from edgeline.serve.http.transport.exchange import Request

EVICTION_INTERVAL_S = 0.0005
"""Between two late clients that are disconnected. A thousand that stalled together are late together, and handling all of them
at once would delay everyone else."""


SPARE_FILES = 64
"""File descriptors that connections leave for everything else."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What answers the requests of a server."""

    app: ASGIApp
    fast_path: Callable[[Request], bool] = lambda request: False
    """Offered every request that is complete; answers it, or returns False at once to leave it to the application."""
    on_rejected: Callable[[str], None] = lambda code: None
    """Called with the code of every request that was rejected before the application saw it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """Limits of one connection, and of their number."""

    max_connections: int = 1024
    """Open connections. A new one above the limit replaces the one that has kept the server waiting longest."""
    head_s: float = 5.0
    """From a request's first byte, or from the connection's start, to the end of its head."""
    body_s: float = 15.0
    """From the end of the head to the end of the body."""
    idle_s: float = 75.0
    """Between two requests. Longer than the 60 s of common proxies, so that no request meets a closing connection."""
    write_s: float = 30.0
    """For reading what is written, about 64 kB at a time."""
    max_head_bytes: int = 16 * 2**10
    max_url_bytes: int = 8 * 2**10
    max_headers: int = 100
    max_pipelined: int = 128
    """Requests of one connection that wait for the response to an earlier one."""
    max_chunks: int = 2**16
    """Chunks of one body with `Transfer-Encoding: chunked`."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) <= 0:
                raise ValueError(f"connection.{each.name} must be over 0, got {getattr(self, each.name)}")


class Connections:
    """The open connections of a server, and which of them may be evicted for a new one."""

    def __init__(self, limits: ConnectionLimits, max_open: int | None = None) -> None:
        self.limits = limits
        self.max_open = max_open or limits.max_connections
        self.open: set[Connection] = set()
        self.silent: dict[Connection, None] = {}
        """Those without a complete head, the longest wait first: stalled clients are at the front."""
        self.slow: dict[Connection, None] = {}
        """Those whose client has yet to send a body or to read a response; in the same order."""
        self.closing = False
        """Whether every response ends its connection."""
        self._date = (0, b"")
        self._last_eviction = 0.0

    def make_room(self) -> bool:
        """Evict the connection that has waited longest, if there are too many; return whether there is room now."""
        if len(self.open) < self.max_open:
            return True
        oldest = next(iter(self.silent or self.slow), None)
        if oldest is None:
            return False
        oldest.evict()
        return True

    def next_eviction_time(self, now: float) -> float:
        """When one more late client may be disconnected, on the loop's clock."""
        self._last_eviction = max(now, self._last_eviction + EVICTION_INTERVAL_S)
        return self._last_eviction

    def end_idle(self) -> None:
        """Close every connection without a request, not even an unread one, after what was written to it."""
        idle = {fileno: each for each in self.silent if each.is_idle and (fileno := each.fileno()) >= 0}
        poll = select.poll()
        for fileno in idle:
            poll.register(fileno, select.POLLIN)
        for fileno in idle.keys() - {fileno for fileno, _ in poll.poll(0)}:
            idle[fileno].end()

    def date(self) -> bytes:
        """The Date header of this second."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = now, b"date: " + formatdate(now, usegmt=True).encode() + b"\r\n"
        return self._date[1]


def affordable(limits: ConnectionLimits) -> int:
    """How many connections this process has file descriptors for, at most what the limits allow; raises the soft limit.

    Each connection counts twice: one that downloads has a file open too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * limits.max_connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return limits.max_connections
    return max(1, min(limits.max_connections, (soft - SPARE_FILES) // 2))
