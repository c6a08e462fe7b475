"""The samples of a prepared run, and their pixels in batches.

Shapes: N images a batch, H x W the model's input.
"""

import csv
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from edgeline.serve.errors import DataError
from edgeline.serve.preprocess import Limits, PreprocessSpec, preprocess
from edgeline.serve.runtime.cpu import usable_cores

T = TypeVar("T")
R = TypeVar("R")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image of the data set, and which split it is in."""

    path: str
    """Absolute, in the user's own folder; never written to."""
    label: str
    index: int
    """Of the label in the class list."""
    split: Split
    group: str
    """Samples of one group are in one split."""
    sha256: str
    """Of the file's bytes."""
    pixels: str
    """SHA-256 of the upright RGB pixels: equal for the same picture in another file."""
    width: int
    height: int
    name: str = ""
    """Relative to the data's root: what reports and artifacts call it, which must not tell where a machine keeps data."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found, as the later steps read it."""

    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    fingerprint: str
    """Digest of every image's content, label and split."""

    def of(self, *splits: Split) -> list[Sample]:
        """The samples of some splits, in the file's order."""
        return [sample for sample in self.samples if sample.split in splits]


ADMITTED = Limits(max_bytes=2**31, max_pixels=2**31)
"""For images that `prepare` admitted under its own limits."""


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write `samples.csv`, every field quoted."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def read_prepared(folder: Path) -> Prepared:
    """Read a prepare step's folder.

    Raises:
        DataError: there is none, or it was written by another version.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "samples.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        whole = ("index", "width", "height")
        samples = tuple(Sample(**{name: int(row[name]) if name in whole else row[name] for name in row}) for row in rows)  # type: ignore[arg-type]
        return Prepared(tuple(summary["labels"]), samples, summary["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no prepared data ({error}); run `edgeline prepare` again") from error


def read_image(sample: Sample) -> bytes:
    """The bytes of a sample's file.

    Raises:
        DataError: it is gone, or not the file that `prepare` saw.
    """
    try:
        data = Path(sample.path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{sample.path}: {error.strerror}; it was there when the data was prepared: prepare it again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sample.sha256:
        raise DataError(f"{sample.path} has changed since the data was prepared; prepare it again", code="content_changed")
    return data


def stream_pixels(
    samples: Sequence[Sample], spec: PreprocessSpec, batch_size: int, *, limits: Limits = ADMITTED
) -> Iterator[np.ndarray]:
    """Preprocess samples in order, ahead of the consumer, in memory bounded by a few batches.

    Yields:
        uint8, shape (N, H, W, 3), N = batch_size but for the last.
    """
    images = map_ahead(lambda sample: preprocess(read_image(sample), spec, limits), samples, ahead=4 * batch_size)
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Iterator[R]:
    """Apply a function to items in threads and yield the results in order, at most `ahead` of them waiting.

    Threads and not processes: decoding and resizing release the GIL.
    """
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
