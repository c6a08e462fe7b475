"""Wait for new image files in a folder, on any system: by looking, which a device can do twice a second for next to nothing.

    for path in watch(Path("incoming"), Watching(), stop, tell):
        ...

A file counts as complete when its size and its time of change are the same on two looks; one that was written elsewhere and
renamed into the folder is so on the second. A file that changes afterwards is a new one, and so is one that replaces it.

Invariants:
- the user's files are only ever listed and looked at;
- a look at a folder in which nothing happened costs one call and `RECHECKED` more, however many files there are;
- names that are gone are forgotten: what is held is in the order of the files that are there.

A folder's own time of change tells whether names came or went. File systems round it, as git knows from its index, so it is
believed only if it is older than `RACY_S` at the time of the listing.
"""

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from edgeline.serve.inputs.shutdown import Stop

RACY_S = 2.5
"""FAT rounds times to two seconds."""
RECHECKED = 256
"""Known files a look compares again, in turn: the only way to see that one was written over in place."""
BATCH = 1000
"""Most new names looked at before those that are complete are handed on."""

Signature = tuple[int, int, int]
"""Inode, size in bytes, time of change in ns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watching:
    """How a folder is watched."""

    interval_s: float = 0.5
    """Between two looks, and how long a file must have been left alone."""
    existing: bool = False
    """Whether the files that are there already are handed on first."""


def watch(folder: Path, watching: Watching, stop: Stop, tell: Callable[[str], None]) -> Iterator[str]:
    """Yield the path of each file when it is complete, of several at once the one that changed first, until asked to stop.

    Args:
        folder: may be absent, or go and come back; hidden files in it and folders are passed over.
        watching: how.
        stop: ends it.
        tell: called with one line when the folder cannot be read, and when it can again.
    """
    watched = Watched(folder, watching, tell)
    if not watching.existing:
        watched.pass_over()
    while not stop.asked:
        yield from watched.look(time.monotonic())
        if not watched.behind:
            # Very many files take long to list: whatever happens in the folder, that takes an eleventh of a core at most.
            stop.wait(max(watching.interval_s, 10 * watched.listing_s))


class Watched:
    """What is known of a folder's files. `watch` looks at them again and again."""

    def __init__(self, folder: Path, watching: Watching, tell: Callable[[str], None]) -> None:
        self.folder = os.fspath(folder)
        self.behind = False
        """Whether the last look left work for another one."""
        self.listing_s = 0.0
        """How long listing took in the last look."""
        self._unseen: deque[str] = deque()
        """Names to look at: new ones, and known ones whose turn it is."""
        self._settle_s = watching.interval_s
        self._tell = tell
        self._known: dict[str, Signature] = {}
        """Files that were handed on, or passed over."""
        self._turn: deque[str] = deque()
        """Their names, the one that is to be compared again next first."""
        self._growing: dict[str, tuple[Signature, float]] = {}
        """Files that may still be written to, and since when they have been as they are; the longest first."""
        self._listed: tuple[int, int, int] | None = None
        self._problem = ""

    def pass_over(self) -> None:
        """Take everything that is there for known."""
        self._list()
        for name in self._unseen:
            if (signature := self._signature(name)) is not None:
                self._known[name] = signature
        self._unseen.clear()
        self._turn.extend(self._known)

    def look(self, now: float) -> Iterator[str]:
        """Compare the folder with what is known of it, and yield what is complete; `now` is any clock's, in seconds."""
        self.listing_s = 0.0
        if not self._unseen:
            started = time.monotonic()
            self._list()
            self.listing_s = time.monotonic() - started
            self._recheck()
        for _ in range(min(BATCH, len(self._unseen))):
            name = self._unseen.popleft()
            signature = self._signature(name)
            if signature is not None and name not in self._growing and self._known.get(name) != signature:
                self._growing[name] = signature, now
        settled = takewhile(lambda item: now - item[1][1] >= self._settle_s, self._growing.items())
        due = [(name, signature) for name, (signature, _) in islice(settled, BATCH)]
        self.behind = bool(self._unseen) or len(due) == BATCH
        complete = sorted(self._complete(due, now), key=lambda found: (found[0][2], found[1]))
        for signature, name in complete:
            if name not in self._known:
                self._turn.append(name)
            self._known[name] = signature
            yield os.path.join(self.folder, name)

    def _complete(self, due: list[tuple[str, Signature]], now: float) -> Iterator[tuple[Signature, str]]:
        for name, before in due:
            del self._growing[name]
            signature = self._signature(name)
            if signature == before:
                yield before, name
            elif signature is not None:
                self._growing[name] = signature, now

    def _list(self) -> None:
        """Take up new names and forget old ones, if the folder may have changed since the last listing."""
        try:
            found = os.stat(self.folder)
            state = found.st_dev, found.st_ino, found.st_mtime_ns
            if state == self._listed:
                return
            with os.scandir(self.folder) as entries:
                inodes = {entry.name: entry.inode() for entry in entries if not entry.name.startswith(".")}
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if self._problem:
            self._tell(f"{self.folder} can be read again")
        came_back, self._problem = bool(self._problem), ""
        self._listed = state if abs(time.time() - found.st_mtime) > RACY_S else None
        # An inode that is the same may be another file's: numbers are used again as soon as they are free.
        self._unseen.extend(
            name for name, inode in inodes.items() if came_back or name not in self._known or self._known[name][0] != inode
        )
        if gone := self._known.keys() - inodes.keys():
            for name in gone:
                del self._known[name]
            self._turn = deque(name for name in self._turn if name not in gone)
        for name in self._growing.keys() - inodes.keys():
            del self._growing[name]

    def _lose(self, problem: str) -> None:
        if problem != self._problem:
            self._tell(f"{self.folder}: {problem}; waiting for it")
        self._problem, self._listed = problem, None

    def _recheck(self) -> None:
        for _ in range(min(RECHECKED, len(self._turn))):
            self._unseen.append(self._turn[0])
            self._turn.rotate(-1)

    def _signature(self, name: str) -> Signature | None:
        """None for what is gone or no file."""
        try:
            found = os.stat(os.path.join(self.folder, name))
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
