"""Where `edgeline predict` gets its images from: paths on the command line, or paths and JPEGs through a pipe.

Every source is an iterator of `Picture`. What cannot be read is a picture too, with the reason instead of bytes: it gets its
line among the answers and costs the others nothing.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeline.serve.errors import ImageError, InputError
from edgeline.serve.inputs.shutdown import Stop

if TYPE_CHECKING:
    from PIL import Image

STDIN = "-"
CHUNK_BYTES = 2**16
MAX_PATH_BYTES = 2**15
"""Systems end at 4,096; a longer line is no path."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image on its way to the classifier."""

    where: dict[str, str | int]
    """`{"path": ...}`, or `{"frame": n}` counted from 1."""
    content: "bytes | Image.Image | InputError"
    """A file's bytes, a camera's upright RGB picture, or why there is none."""


def from_paths(arguments: list[str], max_bytes: int) -> Iterator[Picture]:
    """The images of a command line, folders as the files in them, `-` as the one on stdin."""
    for argument in arguments:
        folder = Path(argument)
        if argument == STDIN:
            yield Picture({"path": argument}, sys.stdin.buffer.read(max_bytes + 1))
            continue
        if not folder.is_dir():
            yield read_picture(argument, max_bytes)
            continue
        files = sorted(str(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not files:
            reason = InputError("this folder holds no files", code="image_unreadable")
            yield Picture({"path": argument}, reason)
        for file in files:
            yield read_picture(file, max_bytes)


def from_lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[Picture]:
    """The images whose paths come one a line, as `find` writes them. Empty lines mean nothing."""
    for line in _lines(chunks):
        path = os.fsdecode(line)
        if len(line) > MAX_PATH_BYTES:
            reason = InputError(f"a line of over {MAX_PATH_BYTES:,} bytes is no path", code="image_unreadable")
            yield Picture({"path": f"{path[:80]}..."}, reason)
        elif line:
            yield read_picture(path, max_bytes)


def read_picture(path: str, max_bytes: int) -> Picture:
    """Read an image file, but never much more than a limit."""
    try:
        return Picture({"path": path}, _read(path, max_bytes))
    except InputError as error:
        return Picture({"path": path}, error)


def stdin_chunks(stop: Stop) -> Iterator[bytes]:
    """What comes through stdin, as soon as it is there, until its end or until the process is asked to end."""
    descriptor = sys.stdin.fileno()
    while stop.readable(descriptor) and (chunk := os.read(descriptor, CHUNK_BYTES)):
        yield chunk


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at line feeds; of a line that is too long for a path the beginning comes, once."""
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
