"""Progress of long loops, in terminals and notebooks; silent everywhere else."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
REFRESH_S = 0.5
"""Between two updates in a notebook."""


def waiting(description: str) -> AbstractContextManager[object]:
    """Show a spinner while the block runs, for work whose length is unknown."""
    console = Console(stderr=True)
    return console.status(f"{description} …") if console.is_terminal else nullcontext()


def track(items: Iterable[Item], description: str, total: int, *, step: int = 1) -> Iterator[Item]:
    """Yield the items, drawing a bar on standard error if it is a terminal, or in the cell of a notebook.

    Args:
        items: the items to yield.
        description: a verb and a noun, such as `reading images`.
        total: total number of units.
        step: number of units in an item, such as the images in a batch.
    """
    console = Console(stderr=True)
    if not console.is_terminal and not console.is_jupyter:
        yield from items
        return
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if console.is_jupyter:
        yield from _track_in_notebook(items, Progress(*columns, console=console), description, total, step)
        return
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task, step)
        progress.update(task, completed=total)


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
