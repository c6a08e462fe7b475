"""Walk a user's folders and open files, without trusting, blocking on or changing anything.

Invariants:
- only regular files are opened, so a FIFO, a socket or a device cannot block;
- links to folders are not followed, so a walk terminates and yields each file once; a link to a file is followed only if
  it stays inside the root;
- everything else is yielded with the reason why it cannot be used, except hidden files and operating systems' leftovers.
"""

import os
import stat
from collections.abc import Iterator
from io import BufferedReader

from edgeline.serve.errors import DataError, ImageError

LEFTOVERS = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Files that Windows and macOS create in folders and archives, in lower case."""


def is_skipped(name: str) -> bool:
    """Whether a name is hidden, or a leftover of an operating system."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def scan(folder: str) -> list[os.DirEntry[str]]:
    """List the entries of a folder that are not skipped, sorted by name.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_skipped(entry.name)), key=lambda entry: entry.name)


def scan_root(folder: str) -> list[os.DirEntry[str]]:
    """List the entries of a folder that the data cannot do without, as `scan` does.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return scan(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; grant this user read access", code="unreadable") from error


def walk(folder: str, root: str) -> Iterator[tuple[str, ImageError | None]]:
    """Yield every file below a folder, at any depth.

    Args:
        folder: where to start; not a link.
        root: real path of the folder that links must stay inside.

    Yields:
        A path, and the reason why it cannot be used, or None if it can be opened.
    """
    waiting = [folder]  # not recursive: folders may be nested deeper than Python's stack
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
    """Open a regular file for reading, without ever blocking.

    Raises:
        ImageError: it is not a regular file, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_regular()
        # It may have been replaced in the meantime: with O_NONBLOCK, opening a FIFO without a writer does not block.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular()
    return file


def printable_name(name: str) -> str:
    r"""Return a file name as text, with bytes that are not UTF-8 written as `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _problem(entry: os.DirEntry[str], root: str) -> ImageError | None:
    if printable_name(entry.name) != entry.name:
        return ImageError("the name is not UTF-8; rename the file", code="name_not_utf8")
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
        mode = os.stat(path).st_mode  # raises for a broken link and for a cycle of links
    except OSError as error:
        return _unreadable(error)
    if stat.S_ISDIR(mode):
        return ImageError("links to folders are not followed; copy the folder here", code="link_to_folder")
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        return ImageError("the link points outside the data folder; copy the file here", code="path_escapes_root")
    return None if stat.S_ISREG(mode) else _not_regular()


def _unreadable(error: OSError) -> ImageError:
    return ImageError(f"cannot be read: {error.strerror}", code="unreadable")


def _not_regular() -> ImageError:
    return ImageError("is a FIFO, a socket, a device or a folder; expected a regular file", code="not_a_regular_file")
