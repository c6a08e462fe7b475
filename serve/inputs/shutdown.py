"""Stop on SIGTERM and SIGINT between two images, so that no output line is cut off.

    with stop_on_signals() as stop:
        while not stop.wait(0.5):
            ...

A second SIGINT ends the process at once, as usual.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a stop was requested. Waiting costs no processor time and ends as soon as a stop is requested."""

    def __init__(self, wakes: int) -> None:
        self.requested = False
        self._wakes = wakes

    def wait(self, seconds: float) -> bool:
        """Sleep, or until a stop is requested; return whether it was."""
        if not self.requested:
            select.select([self._wakes], [], [], max(0.0, seconds))
        return self.requested

    def readable(self, descriptor: int, timeout_s: float | None = None) -> bool:
        """Wait until a pipe, terminal or file can be read; False if a stop was requested, or after the timeout."""
        if self.requested:
            return False
        ready, _, _ = select.select([descriptor, self._wakes], [], [], timeout_s)
        return descriptor in ready and not self.requested

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a `Stop` while the block runs. Only for the main thread, as all signal handlers."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stop = Stop(reader)
    # Python writes a byte to this pipe when a signal arrives, which ends `select`; a handler alone does not.
    before_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop.on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_wakeup)
        os.close(reader)
        os.close(writer)
