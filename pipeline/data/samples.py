"""The samples of a prepared run, and their pixels in batches.

Shapes: N images a batch, H x W the model's input.
"""

import csv
import hashlib
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgeline.pipeline.names import Split
from edgeline.serve.errors import DataError
from edgeline.serve.preprocess import Limits, PreprocessSpec, preprocess
from edgeline.serve.runtime.cpu import usable_cores

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An image of the data set, with its label and split."""

    path: str
    """Absolute; in the user's own folder, which is never written to."""
    label: str
    index: int
    """Index of the label in the list of classes."""
    split: Split
    group: str
    """All samples of a group are in the same split."""
    sha256: str
    """SHA-256 of the file."""
    pixels: str
    """SHA-256 of the upright RGB pixels, equal for copies in other formats."""
    width: int
    height: int
    name: str = ""
    """Relative to the data's root. Reports and artifacts use it, because they must not reveal a machine's folders."""


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`, for later steps."""

    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    fingerprint: str
    """Digest of the content, label and split of every image."""

    def of(self, *splits: Split) -> list[Sample]:
        """Return the samples of the given splits, in the order of the file."""
        return [sample for sample in self.samples if sample.split in splits]


ATTRIBUTES = "attributes.csv"
ADMITTED = Limits(max_bytes=2**31, max_pixels=2**31)
"""For images that `prepare` accepted under the configured limits."""
RECENT_BYTES = 2**27
"""890 images at 224 pixels."""


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write `samples.csv`, with every field quoted."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def write_attributes(path: Path, attributes: Mapping[str, Iterable[tuple[str, str]]]) -> None:
    """Write `attributes.csv`, the further columns of the user's CSV file; nothing if there are none.

    Args:
        path: of the file.
        attributes: name and value of each column, by the image's pixel digest.
    """
    columns = list(dict.fromkeys(name for pairs in attributes.values() for name, _ in pairs))
    if not columns:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["pixels", *columns])
        for pixels, pairs in attributes.items():
            values = dict(pairs)
            writer.writerow([pixels, *(values.get(name, "") for name in columns)])


def read_attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Read the further columns of the user's CSV file from a prepare step's folder.

    Returns:
        The columns by name, each with its values by the image's pixel digest; empty without any.
    """
    path = folder / ATTRIBUTES
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        (_, *names), *rows = csv.reader(file)
    return {name: {row[0]: row[position] for row in rows} for position, name in enumerate(names, 1)}


def read_prepared(folder: Path) -> Prepared:
    """Read a prepare step's folder.

    Raises:
        DataError: it contains no prepared data, or that of another version.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "samples.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        whole = ("index", "width", "height")
        samples = tuple(Sample(**{name: int(row[name]) if name in whole else row[name] for name in row}) for row in rows)  # type: ignore[arg-type]
        return Prepared(tuple(summary["labels"]), samples, summary["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} has no valid prepared data ({error}); run `edgeline prepare` again") from error


def read_image(sample: Sample) -> bytes:
    """Read the bytes of a sample's file.

    Raises:
        DataError: the file is missing, or has changed since `prepare`.
    """
    try:
        data = Path(sample.path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{sample.path}: {error.strerror}; it existed when the data was prepared, so prepare the data again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sample.sha256:
        raise DataError(f"{sample.path} has changed since it was prepared; prepare the data again", code="content_changed")
    return data


class _RecentPixels:
    """The pixels that were used last in this process, up to `RECENT_BYTES`: several steps read the held-out images."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[str, PreprocessSpec, Limits], np.ndarray] = OrderedDict()
        self.size = 0
        self.lock = threading.Lock()

    def get(self, key: tuple[str, PreprocessSpec, Limits]) -> np.ndarray | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def keep(self, key: tuple[str, PreprocessSpec, Limits], pixels_HW3: np.ndarray) -> None:
        with self.lock:
            if key not in self.kept:
                self.kept[key] = pixels_HW3
                self.size += pixels_HW3.nbytes
            while self.size > RECENT_BYTES:
                self.size -= self.kept.popitem(last=False)[1].nbytes


_recent = _RecentPixels()


def read_pixels(sample: Sample, spec: PreprocessSpec, limits: Limits = ADMITTED) -> np.ndarray:
    """Preprocess a sample: uint8, shape (H, W, 3), read-only.

    The file is read and its digest checked every time; equal content is decoded again only if that was long ago.

    Raises:
        DataError: the file is missing, or has changed since `prepare`.
        ImageError: it is not an image within the limits.
    """
    data, key = read_image(sample), (sample.sha256, spec, limits)
    pixels_HW3 = _recent.get(key)
    if pixels_HW3 is None:
        pixels_HW3 = preprocess(data, spec, limits)
        pixels_HW3.flags.writeable = False
        _recent.keep(key, pixels_HW3)
    return pixels_HW3


def stream_pixels(
    samples: Sequence[Sample], spec: PreprocessSpec, batch_size: int, *, limits: Limits = ADMITTED
) -> Iterator[np.ndarray]:
    """Preprocess samples in order, ahead of the consumer. Memory is bounded by a few batches.

    Yields:
        uint8, shape (N, H, W, 3), with N = batch_size except for the last batch.
    """
    images = map_ahead(lambda sample: read_pixels(sample, spec, limits), samples, ahead=4 * batch_size)
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, ahead: int) -> Iterator[R]:
    """Apply a function to items in threads and yield the results in order, with at most `ahead` items in progress.

    Threads suffice, because decoding and resizing release the GIL.
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
