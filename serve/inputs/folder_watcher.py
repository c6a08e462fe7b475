"""Wait for new image files in a folder, by polling: works on any system, and costs a device next to nothing.

    for path in watch(Path("incoming"), WatchOptions(), stop, report):
        ...

A file is complete if its size and modification time are the same in two polls; a file that is written elsewhere and renamed
into the folder is complete in the second. A file that is modified or replaced later counts as new.

Invariants:
- the user's files are only listed and inspected, never changed or opened;
- polling an unchanged folder costs one system call and `RECHECKED` more, however many files it has;
- deleted names are forgotten: memory is proportional to the number of files in the folder.

A folder's own modification time shows whether names were added or removed. File systems round it (git has the same problem
with its index), so it is trusted only if it is older than `RACY_S` at the time of the listing.
"""

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from edgeline.serve.inputs.images import is_picture_name
from edgeline.serve.inputs.shutdown import Stop

RACY_S = 2.5
"""FAT rounds modification times to two seconds."""
RECHECKED = 256
"""Known files that each poll compares again, in rotation: the only way to notice that one was overwritten in place."""
BATCH = 1000
"""Maximum number of new names that are inspected before complete files are returned."""

Signature = tuple[int, int, int]
"""Inode, size in bytes, modification time in ns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchOptions:
    """How a folder is watched."""

    interval_s: float = 0.5
    """Seconds between two polls, and the time that a file must be unchanged."""
    existing: bool = False
    """Whether files that already exist are returned first."""


def watch(folder: Path, options: WatchOptions, stop: Stop, report: Callable[[str], None]) -> Iterator[str]:
    """Yield the path of each file when it is complete, oldest first, until a stop is requested.

    Args:
        folder: may be missing, or disappear and come back; hidden files and subfolders are skipped.
        options: how it is watched.
        stop: ends it.
        report: called with one line when the folder cannot be read, and when it can be read again.
    """
    watched = WatchedFolder(folder, options, report)
    if not options.existing:
        watched.skip_existing()
    while not stop.requested:
        yield from watched.poll(time.monotonic())
        if not watched.behind:
            # Listing very many files is slow; this limits it to an eleventh of a core.
            stop.wait(max(options.interval_s, 10 * watched.listing_s))


class WatchedFolder:
    """The known files of a folder; `watch` polls it repeatedly."""

    def __init__(self, folder: Path, options: WatchOptions, report: Callable[[str], None]) -> None:
        self.folder = os.fspath(folder)
        self.behind = False
        """Whether the last poll left work for the next."""
        self.listing_s = 0.0
        """Duration of the listing in the last poll."""
        self._to_inspect: deque[str] = deque()
        """New names, and known names that are to be compared again."""
        self._settle_s = options.interval_s
        self._report = report
        self._known: dict[str, Signature] = {}
        """Files that were returned or skipped."""
        self._rotation: deque[str] = deque()
        """Their names in the order in which they are compared again."""
        self._growing: dict[str, tuple[Signature, float]] = {}
        """Files that may still be written to, and since when they are unchanged; the oldest first."""
        self._listed: tuple[int, int, int] | None = None
        self._problem = ""

    def skip_existing(self) -> None:
        """Mark all existing files as known."""
        self._list()
        for name in self._to_inspect:
            if (signature := self._signature(name)) is not None:
                self._known[name] = signature
        self._to_inspect.clear()
        self._rotation.extend(self._known)

    def poll(self, now: float) -> Iterator[str]:
        """Compare the folder with the known files and yield the complete ones; `now` is a time in seconds of any clock."""
        self.listing_s = 0.0
        if not self._to_inspect:
            started = time.monotonic()
            self._list()
            self.listing_s = time.monotonic() - started
            self._recheck()
        for _ in range(min(BATCH, len(self._to_inspect))):
            name = self._to_inspect.popleft()
            signature = self._signature(name)
            if signature is not None and name not in self._growing and self._known.get(name) != signature:
                self._growing[name] = signature, now
        settled = takewhile(lambda item: now - item[1][1] >= self._settle_s, self._growing.items())
        due = [(name, signature) for name, (signature, _) in islice(settled, BATCH)]
        self.behind = bool(self._to_inspect) or len(due) == BATCH
        complete = sorted(self._complete(due, now), key=lambda found: (found[0][2], found[1]))
        for signature, name in complete:
            if name not in self._known:
                self._rotation.append(name)
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
        """Add new names and forget deleted ones, if the folder may have changed since the last listing."""
        try:
            found = os.stat(self.folder)
            state = found.st_dev, found.st_ino, found.st_mtime_ns
            if state == self._listed:
                return
            with os.scandir(self.folder) as entries:
                inodes = {entry.name: entry.inode() for entry in entries if is_picture_name(entry.name)}
        except OSError as error:
            self._mark_unreadable(error.strerror or str(error))
            return
        if self._problem:
            self._report(f"{self.folder} can be read again")
        came_back, self._problem = bool(self._problem), ""
        self._listed = state if abs(time.time() - found.st_mtime) > RACY_S else None
        # The same inode may be another file: file systems reuse the numbers of deleted files at once.
        self._to_inspect.extend(
            name for name, inode in inodes.items() if came_back or name not in self._known or self._known[name][0] != inode
        )
        if gone := self._known.keys() - inodes.keys():
            for name in gone:
                del self._known[name]
            self._rotation = deque(name for name in self._rotation if name not in gone)
        for name in self._growing.keys() - inodes.keys():
            del self._growing[name]

    def _mark_unreadable(self, problem: str) -> None:
        if problem != self._problem:
            self._report(f"{self.folder}: {problem}; waiting for it")
        self._problem, self._listed = problem, None

    def _recheck(self) -> None:
        for _ in range(min(RECHECKED, len(self._rotation))):
            self._to_inspect.append(self._rotation[0])
            self._rotation.rotate(-1)

    def _signature(self, name: str) -> Signature | None:
        """None if it was deleted or is not a regular file."""
        try:
            found = os.stat(os.path.join(self.folder, name))
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
