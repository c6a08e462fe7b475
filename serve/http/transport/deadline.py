"""The deadline of a connection: the one thing that it waits for its client to do, and by when."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto


class Waiting(Enum):
    """What a connection waits for."""

    FIRST_BYTE = auto()
    """Of its first request; after that the connection is closed without a response."""
    HEAD = auto()
    """The rest of a request's head."""
    BODY = auto()
    """The rest of a request's body."""
    NEXT_REQUEST = auto()
    """The first byte of another request."""
    CLOSE = auto()
    """That the client stops sending, or has read the last response."""


class Deadline:
    """A timer that is restarted for every request, yet seldom set again.

    Most often the next wait ends later than the one before, and then the timer that is running only has to find out, when it
    fires, that there is time left.
    """

    def __init__(self, next_eviction_time: Callable[[float], float], on_timeout: Callable[[Waiting], None]) -> None:
        """Build a deadline; `start` sets it.

        Args:
            next_eviction_time: when one more late client may be dealt with, on the loop's clock.
            on_timeout: called with what was waited for in vain.
        """
        self.waiting: Waiting | None = None
        """None while the client waits for the server. May be set to None; the timer keeps running then."""
        self._loop = asyncio.get_running_loop()
        self._next_eviction_time = next_eviction_time
        self._on_timeout: Callable[[Waiting], None] | None = on_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._is_scheduled = False
        """Whether `_due` is the time for the eviction, and not that of the deadline itself."""

    def start(self, waiting: Waiting, within_s: float) -> None:
        """Wait for something else, from now on."""
        self.waiting, self._due, self._is_scheduled = waiting, self._loop.time() + within_s, False
        if self._timer is None or self._timer.when() > self._due:
            self._set_timer()

    def close(self) -> None:
        """Wait for nothing ever again."""
        self.waiting = self._on_timeout = None  # it refers to the connection, which refers to this
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self.waiting is None or self._on_timeout is None:
            return
        now = self._loop.time()
        if now >= self._due and not self._is_scheduled:
            self._due, self._is_scheduled = self._next_eviction_time(now), True
        if now < self._due:
            self._set_timer()
        else:
            self._on_timeout(self.waiting)
