"""A folder of photos without labels: what the gate for files from elsewhere looks at.

Every image is read however deep it lies; what cannot be read is told with its reason, and does not stop the rest.

Shapes: H x W the model's input.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeline.pipeline.data.file_walk import open_regular, walk
from edgeline.pipeline.data.samples import map_ahead
from edgeline.pipeline.progress import track
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import Limits, PreprocessSpec, preprocess


@dataclass(frozen=True, slots=True)
class Photos:
    """The photos of a folder, as a model sees them."""

    names: tuple[str, ...]
    """Paths in the folder."""
    pixels: tuple[np.ndarray, ...]
    """Of each, uint8 (H, W, 3)."""
    unreadable: tuple[tuple[str, str], ...]
    """Name and reason of what was tried and cannot be read."""
    found: int
    """Files in the folder, of which as many as were asked for were tried."""


def read_photos(folder: Path, spec: PreprocessSpec, most: int) -> Photos:
    """Read and preprocess the photos of a folder, or as many of them, evenly spread over it.

    Args:
        folder: searched however deep; only read.
        spec: the preprocessing.
        most: how many files are tried at most.

    Raises:
        DataError: there is no such folder, or no photo in it can be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one of photos", code="no_such_folder")
    files = sorted(walk(str(folder), os.path.realpath(folder)), key=lambda entry: entry[0])
    chosen = [files[i * len(files) // most] for i in range(most)] if len(files) > most else files
    read = list(track(map_ahead(lambda entry: _read(entry, spec), chosen, ahead=64), "reading photos", len(chosen)))
    names = [os.path.relpath(path, folder) for path, _ in chosen]
    good = [(name, pixels) for name, pixels in zip(names, read, strict=True) if isinstance(pixels, np.ndarray)]
    bad = tuple((name, str(error)) for name, error in zip(names, read, strict=True) if isinstance(error, ImageError))
    if not good:
        raise DataError(f"{folder} holds no photo that can be read ({_first(bad)}); give JPEG, PNG or WebP", code="no_images")
    return Photos(tuple(name for name, _ in good), tuple(pixels for _, pixels in good), bad, len(files))


def _read(entry: tuple[str, ImageError | None], spec: PreprocessSpec) -> np.ndarray | ImageError:
    path, problem = entry
    if problem is not None:
        return problem
    try:
        with open_regular(path) as file:
            return preprocess(file.read(Limits().max_bytes + 1), spec)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"cannot be read: {error.strerror}", code="unreadable")


def _first(unreadable: Sequence[tuple[str, str]]) -> str:
    return f"of {len(unreadable)}, {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else "it is empty"
