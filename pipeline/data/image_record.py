"""The images of a published version and their splits, in one small file: what later versions must not train on.

    record = read_record(Path("artifacts/store/birds/3/images.npz"))
    record[sample.pixels].split     # in version 3; None if its data did not have the image
    record[sample.pixels].tested    # whether it was in the test split of version 3 or of any version before
    record[sample.pixels].label     # in that version

38 bytes for an image.
"""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.names import Split
from edgeline.serve.artifact.reader import versions
from edgeline.serve.errors import DataError

FILE_NAME = "images.npz"
IN_FILE: tuple[Split | None, ...] = ("train", "val", "test", None)
"""Splits by their number in the file."""


class Known(NamedTuple):
    """What a version knows of an image."""

    split: Split | None
    tested: bool
    label: str = ""

    @property
    def kept(self) -> Split | None:
        """The split that the image has in later versions."""
        return "test" if self.tested else self.split

    @property
    def learned(self) -> bool:
        """Whether the version has learned from it."""
        return self.split in ("train", "val")


Record = Mapping[str, Known]
"""By the pixel digest of each image."""


def write_record(path: Path, samples: Iterable[Sample], before: Record) -> None:
    """Write the record of a version.

    Args:
        path: of the file.
        samples: the version's own.
        before: the record of the newest version before it; empty for the first.
    """
    record = {pixels: Known(None, known.tested, known.label) for pixels, known in before.items() if known.tested}
    for sample in samples:
        tested = sample.split == "test" or (sample.pixels in record and record[sample.pixels].tested)
        record[sample.pixels] = Known(sample.split, tested, sample.label)
    ordered = sorted(record)
    names = sorted({known.label for known in record.values()})
    number = {name: index for index, name in enumerate(names)}
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            digests=np.frombuffer(bytes.fromhex("".join(ordered)), np.uint8).reshape(-1, 32),
            splits=np.array([IN_FILE.index(record[pixels].split) for pixels in ordered], np.uint8),
            tested=np.array([record[pixels].tested for pixels in ordered], bool),
            labels=np.array([number[record[pixels].label] for pixels in ordered], np.int32),
            names=np.array(names, np.str_),
        )


def read_record(path: Path) -> dict[str, Known]:
    """Read the record of a version.

    Raises:
        DataError: the file is missing, as in versions of an earlier edgeline, or invalid.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            digests_N32, splits_N, tested_N = held["digests"], held["splits"], held["tested"]
            labels_N, names = held["labels"], held["names"].tolist()
        if digests_N32.dtype != np.uint8 or digests_N32.shape != (len(splits_N), 32):
            raise ValueError(f"its digests have shape {digests_N32.shape} and dtype {digests_N32.dtype}")
        rows = zip(digests_N32, splits_N.tolist(), tested_N.tolist(), labels_N.tolist(), strict=True)
        return {
            row_32.tobytes().hex(): Known(IN_FILE[split], bool(tested), names[label]) for row_32, split, tested, label in rows
        }
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: that version does not record its images, so nothing keeps a later one from training on its "
            "test images; publish it again with this version of edgeline",
            code="record_missing",
        ) from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is not a record of images ({error}); publish that version again", code="record_invalid"
        ) from error


def newest_record(folder: Path) -> dict[str, Known]:
    """The record of the newest version in a name's folder that has one; empty without any."""
    for version in reversed(versions(folder)):
        if (path := folder / str(version) / FILE_NAME).is_file():
            return read_record(path)
    return {}
