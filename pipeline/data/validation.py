"""Validate every file of a data set by decoding it completely, and cache the result by content.

The result depends only on the file's bytes, the limits and the code, so it is cached under their digests: after one photo
is added, one photo is decoded. Every run hashes all files.

Memory is bounded by a few images in each thread or worker, whatever the size of the data set. Only this process writes to the
cache.
"""

import base64
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain

from PIL import Image

from edgeline.pipeline.data.near_duplicates import perceptual_hash
from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.engines.map_shards import divide, map_shards
from edgeline.pipeline.engines.pool import Needs
from edgeline.pipeline.names import Split
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.step import step_key
from edgeline.pipeline.sources.discovery import Rejected, Source, SourceFile
from edgeline.pipeline.sources.file_walk import open_regular
from edgeline.pipeline.sources.image_extensions import FORMAT_EXTENSIONS, extension, is_named_like_an_image
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.image_files import open_image
from edgeline.serve.jpeg_end import lacks_end_marker
from edgeline.serve.preprocess import Limits, decode_image

STRIP_PIXELS = 2**20
"""Pixels hashed at a time, so that a large image is not copied as a whole."""

FEW_COLORS = 16

HASHED, DECODED = 1024, 64
"""Files in a shard, at most. Results are written to the cache by shards."""
LOCAL = EngineConfig()


@dataclass(frozen=True, slots=True)
class ImageContent:
    """The decoded content of an image file."""

    pixels: str
    """SHA-256 of width, height and the upright RGB pixels."""
    width: int
    height: int
    format: str
    """Pillow's name of the format, such as `JPEG`."""
    few_colors: bool
    """Whether it has at most 16 colors, like a mask of another image."""
    thumbnail: bytes | None
    """For finding near-duplicates, see `near_duplicates.perceptual_hash`."""
    incomplete_end: bool = False
    """Whether it is a JPEG that lacks its end marker; its pixels are complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidImage:
    """A file that contains a usable image."""

    file: SourceFile
    sha256: str
    content: ImageContent
    split: Split | None
    """The split that the data assigns, by the role it is used in."""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.file.name

    @property
    def wrong_extension(self) -> bool:
        """Whether the extension is that of another format."""
        own = extension(self.name)
        return bool(own) and own not in FORMAT_EXTENSIONS[self.content.format]


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """The files of a source, sorted into images, rejected and ignored files."""

    images: tuple[ValidImage, ...]
    rejected: tuple[Rejected, ...]
    """Files that are expected to be images but cannot be used."""
    ignored: tuple[Rejected, ...]
    """Files that are not images and do not have the extension of one."""
    decoded: int
    """Number of distinct contents that were decoded. The results of the others were cached."""

    @property
    def found(self) -> int:
        """Number of files that are expected to be images."""
        return len(self.images) + len(self.rejected)


def hash_files(paths: Sequence[str], limits: Limits, engine: EngineConfig = LOCAL) -> list[str | ImageError]:
    """Return the SHA-256 of each file, or the reason why it cannot be read. Files over the limit are not read.

    Raises:
        EdgelineError: the engine cannot be used, see `map_shards`.
    """
    shards = map_shards(partial(_hash_shard, limits=limits), divide(paths, HASHED), engine, _needs(paths))
    return list(track(chain.from_iterable(shards), "hashing files", len(paths)))


def validate_images(
    source: Source, hashes: Sequence[str | ImageError], limits: Limits, cache: ContentCache, engine: EngineConfig = LOCAL
) -> ValidationResult:
    """Validate the files of a source by decoding them, or use cached results.

    Args:
        source: the files.
        hashes: SHA-256 of its files, as `hash_files` returns them.
        limits: larger images are rejected.
        cache: for the results.
        engine: where they are decoded.

    Raises:
        DataError: a file has changed since it was hashed.
        EdgelineError: the engine cannot be used, see `map_shards`.
    """
    contents: dict[str, str] = {}
    for file, sha256 in zip(source.files, hashes, strict=True):
        if isinstance(sha256, str):
            contents.setdefault(sha256, source.path(file))
    results, decoded = _validate_contents(contents, limits, cache, engine)
    images, rejected, ignored = [], list(source.rejected), []
    for file, sha256 in zip(source.files, hashes, strict=True):
        result = results[sha256] if isinstance(sha256, str) else sha256
        if isinstance(result, ImageContent):
            assert isinstance(sha256, str)
            images.append(ValidImage(file=file, sha256=sha256, content=result, split=source.role(file.given)))
        elif not is_named_like_an_image(file.name) and _is_not_an_image(result, opened=isinstance(sha256, str)):
            ignored.append(Rejected(name=file.name, code="ignored", message=str(result)))
        else:
            rejected.append(Rejected(name=file.name, code=result.code, message=str(result)))
    return ValidationResult(images=tuple(images), rejected=tuple(rejected), ignored=tuple(ignored), decoded=decoded)


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


def _is_not_an_image(error: ImageError, *, opened: bool) -> bool:
    """Whether an error means that a file is not an image, rather than a damaged one. Too large to be opened counts too."""
    return error.code in ("not_an_image", "image_empty") if opened else error.code == "image_too_large"


def _validate_contents(
    paths: Mapping[str, str], limits: Limits, cache: ContentCache, engine: EngineConfig
) -> tuple[dict[str, ImageContent | ImageError], int]:
    """Return the result for each content, given a file with that content, and how many were not cached."""
    code = step_key(asdict(limits), code_digest(__name__), ("pillow",))
    results = {key.partition(":")[0]: _parse(value) for key, value in cache.get(f"{sha256}:{code}" for sha256 in paths)}
    missing = [(sha256, path) for sha256, path in paths.items() if sha256 not in results]
    if not missing:
        return results, 0
    shards = list(divide(missing, DECODED))
    decoded = map_shards(partial(_decode_shard, limits=limits), shards, engine, _needs([path for _, path in missing]))
    decoded = track(decoded, "reading images", len(missing), step=len(shards[0]))
    for shard, new in zip(shards, decoded, strict=True):
        cache.put([(f"{sha256}:{code}", result) for (sha256, _), result in zip(shard, new, strict=True)])
        results.update((sha256, _parse(result)) for (sha256, _), result in zip(shard, new, strict=True))
    return results, len(missing)


def _needs(paths: Sequence[str]) -> Needs:
    return Needs(paths=(*paths[:1], *paths[-1:]), packages=("pillow",))


def _hash_shard(paths: Sequence[str], limits: Limits) -> list[str | ImageError]:
    return [_hash(path, limits) for path in paths]


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


def _decode_shard(files: Sequence[tuple[str, str]], limits: Limits) -> list[bytes]:
    return [_decode(path, sha256, limits) for sha256, path in files]


def _decode(path: str, sha256: str, limits: Limits) -> bytes:
    data = _read_again(path, sha256, limits)
    try:
        image = decode_image(data, limits=limits)
        with open_image(data) as header:
            format = str(header.format)
        few_colors = image.getcolors(FEW_COLORS) is not None
        thumbnail = perceptual_hash(image)
        result = {
            "pixels": pixel_digest(image),
            "width": image.width,
            "height": image.height,
            "format": format,
            "few_colors": few_colors,
            "thumbnail": None if thumbnail is None else base64.b64encode(thumbnail).decode(),
            "incomplete_end": lacks_end_marker(data),
        }
    except ImageError as error:
        result = {"code": error.code, "message": str(error)}
    return json.dumps(result).encode()


def _parse(result: bytes) -> ImageContent | ImageError:
    fields = json.loads(result)
    if "code" in fields:
        return ImageError(fields["message"], code=fields["code"])
    thumbnail = None if fields["thumbnail"] is None else base64.b64decode(fields["thumbnail"])
    return ImageContent(**{**fields, "format": sys.intern(fields["format"]), "thumbnail": thumbnail})


def _read_again(path: str, sha256: str, limits: Limits) -> bytes:
    """Read the bytes that were hashed. A second attempt succeeds if the same content was just being written again."""
    for _ in range(2):
        try:
            with open_regular(path) as file:
                data = file.read(limits.max_bytes + 1)
        except (ImageError, OSError):
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise DataError(
        f"{path} has changed while the data was read; try again when nothing writes to it", code="changed_during_read"
    )
