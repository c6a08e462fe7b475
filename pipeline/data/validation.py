"""Open every file of a data set once, fully, and remember by content what was found.

A verdict depends on nothing but the file's bytes, the limits and the code that decodes, so it is kept over runs under
their digests: after one photo was added, one photo is decoded. Hashing is what every run pays.

Memory is bounded by a few images a thread, whatever the size of the data set.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

from PIL import Image

from edgeline.pipeline.data.discovery import Rejected, Source, SourceFile
from edgeline.pipeline.data.file_walk import open_regular
from edgeline.pipeline.data.samples import Split, map_ahead
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.step import step_key
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import FORMATS, Limits, decode_image

FORMAT_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
}
UNREAD_EXTENSIONS = {
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".ico", ".tga", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".eps", ".fits", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
}
"""Extensions of images of other formats: such a file is rejected, and not ignored as no image at all."""
IMAGE_EXTENSIONS = UNREAD_EXTENSIONS.union(*FORMAT_EXTENSIONS.values())

STRIP_PIXELS = 2**20
"""Pixels hashed at a time: a large image is not copied whole."""

BATCH = 256
"""Verdicts stored at a time: what a kill can cost."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """What a good image file shows."""

    pixels: str
    """SHA-256 of width, height and the upright RGB pixels."""
    width: int
    height: int
    format: str
    """As Pillow names it: `JPEG`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoodImage:
    """A file that is an image."""

    file: SourceFile
    sha256: str
    picture: Picture
    split: Split | None
    """What its given split is used as."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.name

    @property
    def wrong_extension(self) -> bool:
        """Whether the name claims another format than the content has."""
        extension = _extension(self.name)
        return bool(extension) and extension not in FORMAT_EXTENSIONS[self.picture.format]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What opening the files of a source gave."""

    images: tuple[GoodImage, ...]
    rejected: tuple[Rejected, ...]
    """Files that should be images, and cannot be used."""
    ignored: tuple[Rejected, ...]
    """Files that are no images and do not claim to be."""
    decoded: int
    """Contents that were decoded now; the verdicts on all others were remembered."""

    @property
    def found(self) -> int:
        """Files that should be images."""
        return len(self.images) + len(self.rejected)


def hash_files(paths: Sequence[str], limits: Limits) -> list[str | ImageError]:
    """The SHA-256 of each file, or why it cannot be had. Files over the limit are not read."""
    hashes = map_ahead(lambda path: _hash(path, limits), paths, ahead=64)
    return list(track(hashes, "hashing files", len(paths)))


def open_images(source: Source, hashes: Sequence[str | ImageError], limits: Limits, cache: ContentCache) -> Opened:
    """Decode the files of a source, or remember what decoding them gave.

    Args:
        source: where they are.
        hashes: of its files, as `hash_files` gives them.
        limits: what images are refused.
        cache: keeps the verdicts.

    Raises:
        DataError: a file has changed since it was hashed.
    """
    contents: dict[str, str] = {}
    for file, sha256 in zip(source.files, hashes, strict=True):
        if isinstance(sha256, str):
            contents.setdefault(sha256, source.path(file))
    verdicts, decoded = _judge(contents, limits, cache)
    images, rejected, ignored = [], list(source.rejected), []
    for file, sha256 in zip(source.files, hashes, strict=True):
        verdict = verdicts[sha256] if isinstance(sha256, str) else sha256
        if isinstance(verdict, Picture):
            assert isinstance(sha256, str)
            images.append(GoodImage(file=file, sha256=sha256, picture=verdict, split=source.role(file.given)))
        elif _extension(file.name) not in IMAGE_EXTENSIONS and _is_none(verdict, isinstance(sha256, str)):
            ignored.append(Rejected(name=file.name, code="ignored", message=str(verdict)))
        else:
            rejected.append(Rejected(name=file.name, code=verdict.code, message=str(verdict)))
    return Opened(images=tuple(images), rejected=tuple(rejected), ignored=tuple(ignored), decoded=decoded)


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_none(error: ImageError, opened: bool) -> bool:
    """Whether an error says that a file is no image, rather than a bad one. One too large to be opened counts as none."""
    return error.code in ("not_an_image", "image_empty") if opened else error.code == "image_too_large"


def _judge(paths: Mapping[str, str], limits: Limits, cache: ContentCache) -> tuple[dict[str, Picture | ImageError], int]:
    """The verdict on each content, given a file that has it, and how many were not known yet."""
    code = step_key(asdict(limits), code_digest(__name__), ("pillow",))
    known = {key.partition(":")[0]: _parse(value) for key, value in cache.get(f"{sha256}:{code}" for sha256 in paths)}
    unknown = [(sha256, path) for sha256, path in paths.items() if sha256 not in known]
    verdicts = map_ahead(lambda item: (item[0], _examine(item[1], item[0], limits)), unknown, ahead=16)
    for batch in _batches(track(verdicts, "reading images", len(unknown)), BATCH):
        cache.put([(f"{sha256}:{code}", verdict) for sha256, verdict in batch])
        known.update((sha256, _parse(verdict)) for sha256, verdict in batch)
    return known, len(unknown)


def _hash(path: str, limits: Limits) -> str | ImageError:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.max_bytes:
                return ImageError(f"the file has {size:,} bytes, the limit is {limits.max_bytes:,}", code="image_too_large")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(f"cannot be read: {error.strerror}", code="unreadable")


def _examine(path: str, sha256: str, limits: Limits) -> bytes:
    data = _read_again(path, sha256, limits)
    try:
        image = decode_image(data, limits=limits)
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            verdict = asdict(Picture(pixel_digest(image), image.width, image.height, str(header.format)))
    except ImageError as error:
        verdict = {"code": error.code, "message": str(error)}
    return json.dumps(verdict).encode()


def _parse(verdict: bytes) -> Picture | ImageError:
    fields = json.loads(verdict)
    if "code" in fields:
        return ImageError(fields["message"], code=fields["code"])
    return Picture(fields["pixels"], fields["width"], fields["height"], sys.intern(fields["format"]))


def _read_again(path: str, sha256: str, limits: Limits) -> bytes:
    """The bytes that were hashed. A second read helps where the same content was just being written once more."""
    for _ in range(2):
        try:
            with open_regular(path) as file:
                data = file.read(limits.max_bytes + 1)
        except (ImageError, OSError):
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise DataError(
        f"{path} has changed while the data was read; start again when nobody writes to it", code="changed_during_read"
    )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
