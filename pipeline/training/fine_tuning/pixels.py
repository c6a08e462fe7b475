"""Decoded pictures of a training, in one memory-mapped file that is reused in every epoch and by later trainings.

The pictures are a little larger than the model's input, so that random crops have something to choose from.

Shapes: N images, B images in a batch, H x W the pictures.
"""

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from edgeline.pipeline.data.samples import ADMITTED, Sample, read_image
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.atomic_files import replace_file
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.step import step_key
from edgeline.pipeline.training.fine_tuning.distributed import everywhere, rank, share, wait_for_all
from edgeline.serve.preprocess import PreprocessSpec, preprocess

MARGIN = 8 / 7
"""Size of the pictures relative to the model's input: 256 pixels for 224."""
MAX_BYTES = 8 * 2**30
"""Size of the cache. Pictures of larger data sets are decoded again in every epoch."""
BLOCK = 64 * 2**20
DECODED = 32
"""Pictures decoded at a time, where they are decoded in advance."""


def canvas(spec: PreprocessSpec) -> PreprocessSpec:
    """The preprocessing of pictures for random crops: at the model's scale, with a margin around what the model sees."""
    return replace(
        spec,
        height=round(spec.height * MARGIN),
        width=round(spec.width * MARGIN),
        crop_fraction=min(1.0, spec.crop_fraction * MARGIN),
    )


class PixelTable:
    """Pictures by position. Each is decoded when it is first read."""

    def __init__(self, samples: Sequence[Sample], spec: PreprocessSpec, cache: Path) -> None:
        """Open the table of these samples in the cache's folder, or begin a new one.

        Args:
            samples: in the order of the table's rows.
            spec: preprocessing of the pictures.
            cache: folder of results that are shared between runs.
        """
        self.samples, self.spec, self.cache = samples, spec, cache
        key = step_key({"spec": spec.digest()}, code_digest(__name__), ("pillow", "numpy"))
        content = sha256("".join(sample.sha256 for sample in samples).encode()).hexdigest()
        self.path = cache / "pixels" / f"{key[:16]}-{content[:32]}.npy"
        self.table: np.ndarray | None = None
        self.decoded_N = np.zeros(len(samples), bool)
        shape = (len(samples), spec.height, spec.width, 3)
        if (table := _read(self.path, shape)) is not None:
            self.table, self.decoded_N[:] = table, True
            self.path.touch()  # the oldest are deleted first
        elif self._make_room(int(np.prod(shape))):
            self.unfinished = self.path.with_suffix(f".{id(self)}.tmp")
            self.table = np.lib.format.open_memmap(self.unfinished, "w+", np.uint8, shape)
            self.unfinished.unlink()  # nothing is left of it after a kill; the pages stay until the table is closed

    def read(self, rows_B: np.ndarray) -> np.ndarray:
        """Return pictures by position, uint8 (B, H, W, 3). Safe in several threads, if each row is read in one.

        Raises:
            DataError: a file is missing or has changed.
        """
        pictures = []
        for row in rows_B.tolist():
            if self.table is not None and self.decoded_N[row]:
                pictures.append(self.table[row])
                continue
            pictures.append(preprocess(read_image(self.samples[row]), self.spec, ADMITTED))
            if self.table is not None:
                self.table[row] = pictures[-1]
                self.decoded_N[row] = True
        return np.stack(pictures)

    def keep(self) -> None:
        """Write the table to the cache, if every picture was decoded."""
        if self.table is None or not self.decoded_N.all() or self.path.exists():
            return
        replace_file(self.path, partial(_write, self.table))
        _checksum_file(self.path).write_text(str(_checksum(self.path)))

    def decoded_together(self) -> "PixelTable":
        """Decode every picture now, each process a share of them, and return the table of all; this one if it is complete.

        Pictures that are too many for the cache are decoded again in every epoch, by the process that needs them.
        """
        if self.table is None or everywhere(self.decoded_N.all):
            return self
        shared = self.path.with_suffix(".shared")
        if rank() == 0:
            np.lib.format.open_memmap(shared, "w+", np.uint8, self.table.shape)
        wait_for_all()
        self.table = np.load(shared, mmap_mode="r+")
        own = share(np.arange(len(self.samples)))
        for start in track(range(0, len(own), DECODED), "decoding images", len(own), step=DECODED):
            self.read(own[start : start + DECODED])
        wait_for_all()
        self.decoded_N[:] = True
        if rank() == 0:
            self.keep()
            shared.unlink()
        wait_for_all()
        return PixelTable(self.samples, self.spec, self.cache)

    def _make_room(self, size: int) -> bool:
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if size > min(MAX_BYTES, shutil.disk_usage(folder).free // 4):
            return False
        tables = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in tables)
        for path in tables:
            if total + size <= MAX_BYTES:
                break
            total -= path.stat().st_size
            path.unlink()
            _checksum_file(path).unlink(missing_ok=True)
        return True


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the table in a file, memory-mapped, or None if there is none or it is damaged."""
    try:
        if _checksum_file(path).read_text() != str(_checksum(path)):
            return None
        table: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return table if table.shape == shape else None


def _write(table: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, table)


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".crc32")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
