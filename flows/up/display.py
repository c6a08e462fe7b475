"""What `edgeline up` shows: one live table on a terminal, otherwise a line for each change."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edgeline.flows.up.supervisor import Running, State

STYLES = {
    State.READY: "green",
    State.DIED: "red",
    State.UNRESPONSIVE: "red",
    State.STARTING: "yellow",
    State.STOPPING: "yellow",
}

Show = Callable[[Sequence[Running]], None]


@contextmanager
def display(notes: Sequence[str]) -> Iterator[Show]:
    """Yield a function that shows the services' current states.

    Args:
        notes: lines for the user, shown below the table, or first.
    """
    if not sys.stdout.isatty():
        print("\n".join(notes), flush=True)
        yield _Lines().show
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table

    def picture(running: Sequence[Running]) -> Group:
        table = Table("service", "state", "address", "", box=None, pad_edge=False)
        for each in running:
            state = f"[{STYLES.get(each.state, 'dim')}]{each.state}[/]"
            restarts = f"restarted {each.restarts} times" if each.restarts > 1 else "restarted once" if each.restarts else ""
            about = "; ".join(filter(None, (each.detail, restarts)))
            table.add_row(each.service.name, state, escape(each.service.address), f"[dim]{escape(about)}[/]")
        return Group(table, "", *(f"[dim]{escape(note)}[/]" for note in notes))

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        shown: list[object] = []

        def show(running: Sequence[Running]) -> None:
            state = [(each.state, each.detail, each.restarts) for each in running]
            if state != shown:
                shown[:] = state
                live.update(picture(running), refresh=True)

        yield show


class _Lines:
    """Prints the lines that have changed since the last call."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def show(self, running: Sequence[Running]) -> None:
        for each in running:
            line = f"{each.service.name}: {each.state}{f', {each.service.address}' if each.state is State.READY else ''}"
            line += f" {each.detail}" if each.detail else ""
            if self._shown.get(each.service.name) != line:
                self._shown[each.service.name] = line
                print(line, flush=True)
