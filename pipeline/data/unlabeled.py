"""Read a folder of photos without labels: for the verification of third-party models, and for distillation.

Images are read at any depth. Those that cannot be read are reported with the reason, and the others are used.

Shapes: H x W the model's input.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeline.pipeline.data.near_duplicates import find_near_duplicates
from edgeline.pipeline.data.samples import ADMITTED, Prepared, Sample, map_ahead
from edgeline.pipeline.data.validation import ValidationResult, hash_files, validate_images
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.sources.discovery import Source, SourceFile
from edgeline.pipeline.sources.file_walk import open_regular, read_tree
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import Limits, PreprocessSpec, preprocess


@dataclass(frozen=True, slots=True)
class Photos:
    """The preprocessed photos of a folder."""

    names: tuple[str, ...]
    """Paths relative to the folder."""
    pixels: tuple[np.ndarray, ...]
    """Pixels of each, uint8 (H, W, 3)."""
    unreadable: tuple[tuple[str, str], ...]
    """Name and reason of each file that was tried and cannot be read."""
    found: int
    """Number of files in the folder, of which at most the requested number was tried."""


def read_photos(folder: Path, spec: PreprocessSpec, limit: int) -> Photos:
    """Read and preprocess photos of a folder: all of them, or `limit` files evenly spaced in the sorted list.

    Args:
        folder: searched at any depth, never written to.
        spec: the preprocessing.
        limit: maximum number of files to try.

    Raises:
        DataError: the folder does not exist, or no photo in it can be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected a folder of photos", code="no_such_folder")
    tree = read_tree(os.path.realpath(folder))
    files = sorted([*((name, None) for name in tree.files), *tree.problems], key=lambda entry: entry[0])
    chosen = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    read = list(track(map_ahead(lambda entry: _read(tree.root, entry, spec), chosen, ahead=64), "reading photos", len(chosen)))
    names = [name for name, _ in chosen]
    good = [(name, pixels) for name, pixels in zip(names, read, strict=True) if isinstance(pixels, np.ndarray)]
    bad = tuple((name, str(error)) for name, error in zip(names, read, strict=True) if isinstance(error, ImageError))
    if not good:
        raise DataError(f"{folder} contains no readable photo ({_first(bad)}); expected JPEG, PNG or WebP", code="no_images")
    return Photos(tuple(name for name, _ in good), tuple(pixels for _, pixels in good), bad, len(files))


def find_unlabeled(folder: Path, prepared: Prepared, cache: ContentCache) -> tuple[list[Sample], Finding]:
    """Find the photos of a folder that a network may learn from, besides the prepared ones.

    Those that are in the prepared data too are left out, and so are near-duplicates of its validation and test images.

    Args:
        folder: searched at any depth, never written to.
        prepared: the labeled images.
        cache: of validated images.

    Returns:
        The photos, with the label index -1, and what was left out.

    Raises:
        DataError: the folder does not exist, or contains no such photo.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected a folder of photos", code="no_such_folder")
    tree = read_tree(os.path.realpath(folder))
    photos = _validate(tree.root, [os.path.join(tree.root, name) for name in tree.files], cache)
    known = {sample.pixels for sample in prepared.samples}
    distinct = {photo.content.pixels: photo for photo in photos.images if photo.content.pixels not in known}
    held_out = [sample.path for sample in prepared.of("val", "test")]
    images = [*_validate(tree.root, held_out, cache).images, *distinct.values()]
    near = {
        pixels
        for first, second, _ in find_near_duplicates([image.content.thumbnail for image in images]).pairs
        for pixels in (images[first].content.pixels, images[second].content.pixels)
        if min(first, second) < len(images) - len(distinct)
    }
    samples = [
        Sample(
            path=os.path.join(tree.root, photo.name),
            label="",
            index=-1,
            split="train",
            group="",
            sha256=photo.sha256,
            pixels=photo.content.pixels,
            width=photo.content.width,
            height=photo.content.height,
            name=os.path.relpath(os.path.join(tree.root, photo.name), tree.root),
        )
        for pixels, photo in distinct.items()
        if pixels not in near
    ]
    found = (
        f"{len(samples):,} photos of {folder} are learned from without labels; left out: {len(photos.rejected):,} that cannot "
        f"be read, {len(photos.images) - len(distinct):,} that are copies, {len(distinct) - len(samples):,} that are nearly "
        "the same as a validation or test image"
    )
    if not samples:
        raise DataError(f"{found}; add photos that are not part of the data", code="no_images")
    return samples, Finding(code="unlabeled_photos", message=f"{found}.", level="note")


def _validate(root: str, paths: Sequence[str], cache: ContentCache) -> ValidationResult:
    source = Source(layout="top", root=root, labels=(), files=tuple(SourceFile(name=path, label="") for path in paths))
    return validate_images(source, hash_files(paths, ADMITTED), ADMITTED, cache)


def _read(root: str, entry: tuple[str, ImageError | None], spec: PreprocessSpec) -> np.ndarray | ImageError:
    name, problem = entry
    if problem is not None:
        return problem
    try:
        with open_regular(os.path.join(root, name)) as file:
            return preprocess(file.read(Limits().max_bytes + 1), spec)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"cannot be read: {error.strerror}", code="unreadable")


def _first(unreadable: Sequence[tuple[str, str]]) -> str:
    return f"of {len(unreadable)}, {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else "it is empty"
