"""Show on the terminal how far a long loop is; silent where nobody watches."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def waiting(description: str) -> AbstractContextManager[object]:
    """Show that something takes its time that cannot be counted; silent where nobody watches."""
    console = Console(stderr=True)
    return console.status(f"{description} …") if console.is_terminal else nullcontext()


def track(items: Iterable[Item], description: str, total: int, *, step: int = 1) -> Iterator[Item]:
    """Yield the items, drawing a bar on standard error where that is a terminal.

    Args:
        items: what to pass on.
        description: a verb and a noun: `reading images`.
        total: how many units there will be.
        step: units an item stands for, for example images a batch.
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
