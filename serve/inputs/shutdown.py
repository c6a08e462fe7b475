"""SIGTERM and SIGINT as a wish that is heeded between two images, so that no answer is cut in half.

    with stop_on_signals() as stop:
        while not stop.wait(0.5):
            ...

A second SIGINT ends the process at once, as it does everywhere else.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether the process was asked to end. Waiting costs no processor time and ends as soon as it is asked."""

    def __init__(self, wakes: int) -> None:
        self.asked = False
        self._wakes = wakes

    def wait(self, seconds: float) -> bool:
        """Sleep; return whether the process was asked to end, before the time is over if so."""
        if not self.asked:
            select.select([self._wakes], [], [], max(0.0, seconds))
        return self.asked

    def readable(self, descriptor: int, timeout_s: float | None = None) -> bool:
        """Wait until a pipe, terminal or file can be read; False if the process was asked to end, or the time is over."""
        if self.asked:
            return False
        ready, _, _ = select.select([descriptor, self._wakes], [], [], timeout_s)
        return descriptor in ready and not self.asked

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a `Stop` while the block runs. For the main thread, as signals are."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stop = Stop(reader)
    # Python writes a byte there as a signal comes in, which is what ends `select`: its handlers alone do not.
    before_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop.heed) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_wakeup)
        os.close(reader)
        os.close(writer)
