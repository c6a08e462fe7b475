"""Images of `edgeline predict`: paths on the command line, and paths through a pipe.

Every source is an iterator of `Picture`. An image that cannot be read is a `Picture` with the error instead of bytes: it gets
its own line in the output and does not affect the others.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeline.serve.errors import ImageError, InputError
from edgeline.serve.inputs.shutdown import Stop
from edgeline.serve.leftovers import leftover

if TYPE_CHECKING:
    from PIL import Image

STDIN = "-"
CHUNK_BYTES = 2**16
MAX_PATH_BYTES = 2**15
"""Operating systems allow 4,096; a longer line is not a path."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An input image of the classifier."""

    where: dict[str, str | int]
    """`{"path": ...}`, or `{"frame": n}` counted from 1."""
    content: "bytes | Image.Image | InputError"
    """A file's bytes, a camera's upright RGB image, or the error."""


def from_paths(arguments: list[str], max_bytes: int) -> Iterator[Picture]:
    """The images of command-line arguments: files, folders with files, or `-` for one image on stdin."""
    for argument in arguments:
        folder = Path(argument)
        if argument == STDIN:
            yield Picture({"path": argument}, sys.stdin.buffer.read(max_bytes + 1))
            continue
        if not folder.is_dir():
            yield read_picture(argument, max_bytes)
            continue
        files = sorted(str(path) for path in folder.iterdir() if path.is_file() and is_picture_name(path.name))
        if not files:
            folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_picture_name(path.name))
            inner = f"; folders in it are not searched: name one, such as {folder / folders[0]}" if folders else ""
            reason = InputError(f"this folder has no files{inner}", code="image_unreadable")
            yield Picture({"path": argument}, reason)
        for file in files:
            yield read_picture(file, max_bytes)


def from_lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[Picture]:
    """The images whose paths are given one per line, as `find` writes them. Empty lines are ignored."""
    for line in _lines(chunks):
        path = os.fsdecode(line.removesuffix(b"\r"))  # as Windows ends lines
        if len(line) > MAX_PATH_BYTES:
            reason = InputError(f"a line of over {MAX_PATH_BYTES:,} bytes is not a path", code="image_unreadable")
            yield Picture({"path": f"{path[:80]}..."}, reason)
        elif path:
            yield read_picture(path, max_bytes)


def is_picture_name(name: str) -> bool:
    """Whether a file in a folder of pictures is read: it is neither hidden nor a leftover of a system or tool."""
    return not name.startswith(".") and leftover(name) is None


def read_picture(path: str, max_bytes: int) -> Picture:
    """Read an image file; a file over the limit is not read."""
    try:
        return Picture({"path": path}, _read(path, max_bytes))
    except InputError as error:
        return Picture({"path": path}, error)


def stdin_chunks(stop: Stop) -> Iterator[bytes]:
    """Read stdin as data arrives, until its end or until a stop is requested."""
    descriptor = sys.stdin.fileno()
    while stop.readable(descriptor) and (chunk := os.read(descriptor, CHUNK_BYTES)):
        yield chunk


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at line feeds; a line that is too long for a path is truncated."""
    held = b""
    for chunk in chunks:
        *ended, rest = (held[: MAX_PATH_BYTES + 1] + chunk).split(b"\n")
        yield from ended
        held = rest
    yield held


def _read(path: str, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ImageError(f"the image has {size:,} bytes, the limit is {max_bytes:,}", code="image_too_large")
            return file.read(max_bytes + 1)  # a pipe has no size
    except IsADirectoryError as error:
        raise InputError("this is a folder, not an image", code="image_unreadable") from error
    except ValueError as error:  # a path with a NUL in it
        raise InputError(f"cannot be read: {error}", code="image_unreadable") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", code="image_unreadable") from error
