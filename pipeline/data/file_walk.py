"""Look at a user's folders and files: nothing is trusted, nothing hangs, nothing is changed.

Invariants:
- only regular files are ever opened, so a FIFO, a socket or a device cannot block or be disturbed;
- links to folders are not followed, so a walk ends and sees each file once; a link to a file is followed only as long as
  it stays inside the root;
- everything that is not handed on as a file is handed on with its reason; only hidden files and what operating systems
  leave behind go unmentioned.
"""

import os
import stat
from collections.abc import Iterator
from io import BufferedReader

from edgeline.serve.errors import DataError, ImageError

LEFTOVERS = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What Windows and macOS leave in folders and archives, in lower case."""


def is_skipped(name: str) -> bool:
    """Whether a name is hidden, or an operating system's and not the user's."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder that count, sorted by name.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_skipped(entry.name)), key=lambda entry: entry.name)


def scan_root(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder that the data cannot do without.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return scan(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; give this user access", code="unreadable") from error


def walk(folder: str, root: str) -> Iterator[tuple[str, ImageError | None]]:
    """Every file below a folder, however deep.

    Args:
        folder: where to start; not a link.
        root: the real path that links must not leave.

    Yields:
        A path, and why it cannot be used, or None for one that can be opened.
    """
    waiting = [folder]  # not recursion: folders may be nested deeper than Python's stack
    while waiting:
        current = waiting.pop()
        try:
            entries = scan(current)
        except OSError as error:
            yield current, _unreadable(error)
            continue
        for entry in entries:
            problem = _problem(entry, root)
            if problem is None and entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry.path, problem


def open_regular(path: str) -> BufferedReader:
    """Open a regular file for reading, without ever waiting for it.

    Raises:
        ImageError: it is none, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_regular()
        # It may have been replaced since: O_NONBLOCK returns at once even from a FIFO without a writer.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular()
    return file


def printable_name(name: str) -> str:
    r"""A file's name as text, bytes that are no UTF-8 written as `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _problem(entry: os.DirEntry[str], root: str) -> ImageError | None:
    if printable_name(entry.name) != entry.name:
        return ImageError("the name is no UTF-8; rename it", code="name_not_utf8")
    try:
        if entry.is_symlink():
            return _link_problem(entry.path, root)
        if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
            return None
    except OSError as error:
        return _unreadable(error)
    return _not_regular()


def _link_problem(path: str, root: str) -> ImageError | None:
    try:
        mode = os.stat(path).st_mode  # raises on a link to nothing and on a circle of links
    except OSError as error:
        return _unreadable(error)
    if stat.S_ISDIR(mode):
        return ImageError("links to folders are not followed; put the folder itself here", code="link_to_folder")
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        return ImageError("the link leaves the data's folder; copy the file here", code="path_escapes_root")
    return None if stat.S_ISREG(mode) else _not_regular()


def _unreadable(error: OSError) -> ImageError:
    return ImageError(f"cannot be read: {error.strerror}", code="unreadable")


def _not_regular() -> ImageError:
    return ImageError("is a FIFO, a socket, a device or a folder, expected a file", code="not_a_regular_file")
