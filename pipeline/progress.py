"""Progress of long loops on the terminal. Silent if standard error is not a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def waiting(description: str) -> AbstractContextManager[object]:
    """Show a spinner while the block runs, for work whose length is unknown."""
    console = Console(stderr=True)
    return console.status(f"{description} …") if console.is_terminal else nullcontext()


def track(items: Iterable[Item], description: str, total: int, *, step: int = 1) -> Iterator[Item]:
    """Yield the items, with a progress bar on standard error if that is a terminal.

    Args:
        items: the items to yield.
        description: a verb and a noun, such as `reading images`.
        total: total number of units.
        step: number of units in an item, such as the images in a batch.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task, step)
        progress.update(task, completed=total)
