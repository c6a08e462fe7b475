"""Progress of long loops, in terminals and notebooks; silent everywhere else."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
REFRESH_S = 0.5
"""Between two updates in a notebook."""


class Stopped(BaseException):
    """A loop ends early, because a step beside it has failed. Not an `Exception`: nothing in the loop itself is wrong."""


STOP: ContextVar[threading.Event | None] = ContextVar("STOP", default=None)
"""Once it is set, every loop with progress in this context raises `Stopped` at its next item."""


class _Terminal:
    """The bars on a terminal: one block for all threads, of which the last one stays when it is finished."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bars = 0
        self.progress = Progress()

    @contextmanager
    def bar(self, console: Console, description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
        with self.lock:
            if not self.bars:
                # Output is not redirected: two threads would restore it in the wrong order.
                self.progress = Progress(*_columns(), console=console, redirect_stdout=False, redirect_stderr=False)
                self.progress.start()
            self.bars += 1
            progress, task = self.progress, self.progress.add_task(description, total=total)
        try:
            yield progress, task
        finally:
            with self.lock:
                self.bars -= 1
                if self.bars:
                    progress.remove_task(task)
                else:
                    progress.stop()


_terminal = _Terminal()


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show a bar without an end while the block runs, for work whose length is unknown."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with _terminal.bar(console, f"{description} …", None):
        yield


def track(items: Iterable[Item], description: str, total: int, *, step: int = 1) -> Iterator[Item]:
    """Yield the items, drawing a bar on standard error if it is a terminal, or in the cell of a notebook.

    Args:
        items: the items to yield.
        description: a verb and a noun, such as `reading images`.
        total: total number of units.
        step: number of units in an item, such as the images in a batch.

    Raises:
        Stopped: `STOP` is set.
    """
    items = _until_stopped(items)
    console = Console(stderr=True)
    if not console.is_terminal and not console.is_jupyter:
        yield from items
        return
    if console.is_jupyter:
        yield from _track_in_notebook(items, Progress(*_columns(), console=console), description, total, step)
        return
    with _terminal.bar(console, description, total) as (progress, task):
        for item in items:
            yield item
            progress.advance(task, step)
        progress.update(task, completed=total)


def _columns() -> tuple[ProgressColumn, ...]:
    return TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()


def _until_stopped(items: Iterable[Item]) -> Iterator[Item]:
    stop = STOP.get()
    for item in items:
        if stop is not None and stop.is_set():
            raise Stopped
        yield item


def _track_in_notebook(items: Iterable[Item], progress: Progress, description: str, total: int, step: int) -> Iterator[Item]:
    """Redraw the bar in its cell. It is never started, because rich's live display in notebooks needs ipywidgets."""
    from IPython.display import display

    task = progress.add_task(description, total=total)
    handle = display(progress, display_id=True)  # type: ignore[no-untyped-call]
    shown = time.monotonic()
    for item in items:
        yield item
        progress.advance(task, step)
        if time.monotonic() - shown > REFRESH_S:
            handle.update(progress)
            shown = time.monotonic()
    progress.update(task, completed=total)
    handle.update(progress)
