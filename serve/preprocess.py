"""From an image file's bytes to the pixels a model sees: the only implementation there is.

Training, evaluation, calibration, verification and serving all call `preprocess`, so a model cannot meet other pixels in
the field than those it learned from. What it does is data (`PreprocessSpec`), travels in every checkpoint and artifact,
and is compared by digest on load.

    pixels_HW3 = preprocess(path.read_bytes(), spec)

The order matters and is the contract for every port of it (`docs/artifact.md`):
1. read size and format from the header; refuse what is over the limits before any pixel is decoded;
2. decode the first frame whole; a truncated file is an error, never a gray half. A JPEG is decoded at 1/8, 1/4 or 1/2 of its
   size, by fewer terms of its cosine transform, as far as `jpeg_scale` says that this leaves at least twice what is needed;
3. turn upright by the EXIF orientation;
4. bring to 8-bit RGB: 16-bit is scaled, not clipped; transparency is composited on `background`; CMYK is converted;
5. cut the centered rectangle of the model's aspect that covers `crop_fraction` of the picture, in whole pixels;
6. resize it to the model's resolution, antialiased.

Cutting before resizing is one resampling of fewer pixels, needs no intermediate of the picture's own aspect (a 1 x 10,000
strip stays harmless) and is the order phones do it in. ADR 0003 has the comparison with resize-then-crop, ADR 0013 the one
of scaled with full decoding.
"""

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgeline.serve.errors import ImageError, ManifestError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded. TIFF, PSD, EPS and the rest are refused: each is one more parser to attack, and no camera writes them."""

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow refuses more by itself, whatever `Limits` allows."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

JPEG_DECODINGS = ("scaled", "full")

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that undoes it; 1 and invalid values need none."""
LYING = (5, 6, 7, 8)
"""Orientations of pictures that are stored with width and height exchanged."""
FROM_THE_RIGHT, FROM_THE_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations whose first stored row or column is the right or the bottom edge of the upright picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How large an image may be before it is refused."""

    max_bytes: int = 16 * 2**20
    """Largest encoded image, in bytes."""
    max_pixels: int = 50_000_000
    """Largest width * height, read from the header before decoding."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"limits.{field.name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessSpec:
    """The preprocessing of one model, as data."""

    height: int
    """Rows of the model's input."""
    width: int
    """Columns of the model's input."""
    crop_fraction: float = 0.875
    """Share of the picture's shorter side that the centered crop keeps; 1.0 keeps all of it."""
    interpolation: str = "bicubic"
    """`bilinear`, `bicubic` (a = -0.5) or `lanczos` (3 lobes), as Pillow names them."""
    antialias: bool = True
    """The filter widens with the scale when shrinking. Always true; written out for readers in other languages."""
    orientation: str = "exif"
    """Pictures are turned upright by their EXIF tag."""
    color: str = "RGB"
    """Channel order."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Color under transparent pixels."""
    jpeg_decoding: str = "scaled"
    """`scaled`: a JPEG much larger than the model's input is decoded smaller, see `jpeg_scale`; `full`: never.

    Specs from before this field say nothing of it and mean `full`: it is left out of the JSON then, which keeps their digests.
    """

    def __post_init__(self) -> None:
        problems = []
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= 4096:
                problems.append(f"{name} must be 1 to 4096, got {getattr(self, name)}")
        if not 0.1 <= self.crop_fraction <= 1:
            problems.append(f"crop_fraction must be 0.1 to 1, got {self.crop_fraction}")
        if self.interpolation not in INTERPOLATIONS:
            problems.append(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if self.jpeg_decoding not in JPEG_DECODINGS:
            problems.append(f"jpeg_decoding must be one of {', '.join(JPEG_DECODINGS)}, got {self.jpeg_decoding!r}")
        for name, only in (("antialias", True), ("orientation", "exif"), ("color", "RGB")):
            if getattr(self, name) != only:
                problems.append(f"{name} must be {only!r}, got {getattr(self, name)!r}")
        if len(self.background) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in self.background):
            problems.append(f"background must be three values of 0 to 255, got {self.background}")
        if problems:
            raise ManifestError("preprocess: " + "; ".join(problems))

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read a spec as `to_dict` writes it.

        Raises:
            ManifestError: a field is missing, unknown, of another type or out of range.
        """
        if not isinstance(data, dict):
            raise ManifestError(f"preprocess must be an object, got {type(data).__name__}")
        data = {"jpeg_decoding": "full", **data}
        known = {field.name for field in fields(cls)}
        if data.keys() != known:
            raise ManifestError(f"preprocess must have exactly the fields {sorted(known)}, got {sorted(data)}")
        try:
            return cls(**{**data, "background": tuple(data["background"])})
        except TypeError as error:
            raise ManifestError(f"preprocess: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types."""
        data = {**asdict(self), "background": list(self.background)}
        if self.jpeg_decoding == "full":
            del data["jpeg_decoding"]
        return data

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two models preprocess alike exactly if these are equal."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def preprocess(data: bytes, spec: PreprocessSpec, limits: Limits = Limits()) -> np.ndarray:
    """Return the pixels that a model sees of an image file.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, GIF (first frame) or BMP.
        spec: the model's preprocessing.
        limits: what is refused before decoding.

    Returns:
        uint8, shape (spec.height, spec.width, 3), RGB.

    Raises:
        ImageError: not an image, truncated, of an unsupported kind, or over the limits.
    """
    image, box = _decode(data, spec.background, limits, spec)
    return fit(image, spec, box)


def decode_image(data: bytes, background: tuple[int, int, int] = (255, 255, 255), limits: Limits = Limits()) -> Image.Image:
    """Decode an image file to upright 8-bit RGB at its own size.

    Raises:
        ImageError: as `preprocess`; `code` tells the cases apart.
    """
    return _decode(data, background, limits, None)[0]


def _decode(
    data: bytes, background: tuple[int, int, int], limits: Limits, spec: PreprocessSpec | None
) -> tuple[Image.Image, Box | None]:
    """Decode to upright 8-bit RGB, smaller where `spec` allows it; then also what `fit` is to resize of the smaller picture."""
    if not data:
        raise ImageError("the image is empty (0 bytes)", code="image_empty")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {len(data):,} bytes, the limit is {limits.max_bytes:,}", code="image_too_large")
    image = _open(data, limits)
    try:
        box = None if spec is None else _reduce(image, spec)
        image.load()
        return _to_rgb(_upright(image), background), box
    except ImageError:
        raise
    # Pillow's decoders meet hostile bytes here and raise whatever they stumble on: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError and more. None of them may pass for anything but "this is no good image".
    except Exception as error:
        code = "image_truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "image_invalid"
        raise ImageError(f"the {image.format} data cannot be decoded: {_one_line(error)}", code=code) from error


def fit(image: Image.Image, spec: PreprocessSpec, box: Box | None = None) -> np.ndarray:
    """Crop and resize an upright RGB image to the model's input.

    Args:
        image: the picture.
        spec: the model's preprocessing.
        box: the rectangle that fills the model's input; that of `crop_box` where not given.

    Returns:
        uint8, shape (spec.height, spec.width, 3).
    """
    box = box or crop_box(image.width, image.height, spec)
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    # Not resize(box=) alone: at the edges that reads beyond the box, which no port of "cut, then resize" would reproduce.
    cut = image.crop((left, top, right, bottom))
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.asarray(cut.resize((spec.width, spec.height), INTERPOLATIONS[spec.interpolation], inside))


def crop_box(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """Return the rectangle (left, top, right, bottom) that `fit` resizes, in whole pixels of the upright picture."""
    scale = min(width / spec.width, height / spec.height) * spec.crop_fraction
    crop_width = max(1, round(spec.width * scale))
    crop_height = max(1, round(spec.height * scale))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def jpeg_scale(width: int, height: int, spec: PreprocessSpec) -> int:
    """Return what the sides of a JPEG are divided by, rounding up, as it is decoded: 1, 2, 4 or 8.

    It is the largest that leaves the rectangle of `crop_box` at least twice the model's input in both directions, so that the
    antialiasing resize still decides what is seen.

    Args:
        width: of the upright picture: of one that lies on its side by its EXIF orientation (5 to 8), its stored height.
        height: of the upright picture.
        spec: the model's preprocessing.
    """
    left, top, right, bottom = crop_box(width, height, spec)
    for scale in (8, 4, 2) if spec.jpeg_decoding == "scaled" else ():
        if right - left >= 2 * scale * spec.width and bottom - top >= 2 * scale * spec.height:
            return scale
    return 1


def reduced_box(width: int, height: int, orientation: int, scale: int, spec: PreprocessSpec) -> Box:
    """Return where `crop_box` lies in the upright picture that was decoded at 1/scale, in its pixels; they may be fractions.

    Args:
        width: of the upright picture at full size.
        height: of the upright picture at full size.
        orientation: its EXIF orientation.
        scale: 1, 2, 4 or 8.
        spec: the model's preprocessing.
    """
    left, top, right, bottom = crop_box(width, height, spec)
    # The last stored row and column are filled up to whole pixels; turned, they may be the first.
    x = -width % scale if orientation in FROM_THE_RIGHT else 0
    y = -height % scale if orientation in FROM_THE_BOTTOM else 0
    return (left + x) / scale, (top + y) / scale, (right + x) / scale, (bottom + y) / scale


def _open(data: bytes, limits: Limits) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = min(limits.max_pixels, PILLOW_MAX_PIXELS)
        raise ImageError(f"the image has more than {limit:,} pixels, the limit", code="image_too_large") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "the bytes are no image that edgeline reads (JPEG, PNG, WebP, GIF, BMP)", code="not_an_image"
        ) from error
    except Exception as error:  # a hostile header, see decode_image
        raise ImageError(f"the image header cannot be read: {_one_line(error)}") from error
    if image.width * image.height > limits.max_pixels:
        raise ImageError(
            f"the image has {image.width} x {image.height} = {image.width * image.height:,} pixels, "
            f"the limit is {limits.max_pixels:,}",
            code="image_too_large",
        )
    return image


def _reduce(image: Image.Image, spec: PreprocessSpec) -> Box | None:
    """Have a JPEG decoded smaller where that is allowed; return what is then to be resized."""
    if image.format not in ("JPEG", "MPO"):
        return None
    orientation = orientation_of(image)
    width, height = image.size[::-1] if orientation in LYING else image.size
    scale = jpeg_scale(width, height, spec)
    if scale == 1:
        return None
    # Pillow takes a size and chooses the largest scale that stays above it, which is this one. No other color mode is asked
    # for: the decoder would convert by itself.
    image.draft(None, (image.width // scale, image.height // scale))
    return reduced_box(width, height, orientation, scale, spec)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 where it has none that is valid."""
    # Not ImageOps.exif_transpose: it rewrites the EXIF block too, which costs a copy and fails on odd ones.
    try:
        value = image.getexif().get(EXIF_ORIENTATION)
        return value if value in UPRIGHT else 1
    except Exception:  # a damaged EXIF block says nothing about the pixels; viewers ignore it and so do we
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = UPRIGHT.get(orientation_of(image))
    if turn is None:
        return image
    info, image = image.info, image.transpose(turn)
    image.info = info  # transparency of palette images lives there
    return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip every value over 255 to white: scale the 16 bits to 8 instead.
        gray = np.asarray(image, dtype=np.uint16)
        return Image.fromarray(((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"the image has mode {image.mode} (32 bits a pixel), whose range is unknown; save it with 8 or 16 bits",
            code="mode_not_supported",
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
