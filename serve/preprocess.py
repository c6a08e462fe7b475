"""Preprocessing: from an image file's bytes to the pixels that a model sees.

This is the only implementation. Training, evaluation, calibration, verification and serving all call `preprocess`, so
production pixels cannot differ from training pixels. The settings are data (`PreprocessSpec`), stored in every checkpoint and
artifact and compared by digest on load.

    pixels_HW3 = preprocess(path.read_bytes(), spec)

The order of the steps matters; it is the contract for every port (`docs/artifact.md`):
1. read size and format from the header; reject images over the limits before any pixel is decoded;
2. decode the first frame completely; a truncated file is an error, unless it is a JPEG of one scan that lacks only its end
   marker. A JPEG is decoded at 1/8, 1/4 or 1/2 of its size, using fewer terms of its cosine transform, if that leaves at least
   twice the model's input; see `jpeg_scale`;
3. rotate and mirror according to the EXIF orientation; no other metadata matters, see `image_files`;
4. convert to 8-bit RGB: 16-bit is scaled, not clipped; transparency is composited on `background`, except in a BMP whose alpha
   is zero everywhere; CMYK is converted;
5. crop the centered rectangle of the model's aspect ratio that covers `crop_fraction` of the image, in whole pixels;
6. resize it to the model's resolution, antialiased.

Cropping before resizing resamples fewer pixels, once, needs no intermediate image of the original aspect ratio (a strip of
1 x 10,000 pixels is harmless) and is the usual order on phones. ADR 0003 compares it with resize-then-crop, ADR 0013 scaled
with full decoding.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from edgeline.serve.errors import ImageError, ManifestError
from edgeline.serve.image_files import kind_of, open_image
from edgeline.serve.jpeg_end import with_end_marker

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow's own limit, whatever `Limits` allows."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

JPEG_DECODINGS = ("scaled", "full")

Interpolation = Literal["bilinear", "bicubic", "lanczos"]
"""Resize filters, by Pillow's names. A new one also goes into the ports below docs/devices/."""
INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}

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
"""EXIF orientation to the transpose operation that undoes it; 1 and invalid values need none."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations of images that are stored with width and height swapped."""
RIGHT_EDGE_FIRST, BOTTOM_EDGE_FIRST = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations whose first stored row or column is the right or the bottom edge of the upright image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits above which an image is rejected."""

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
    """Fraction of the image's shorter side that the centered crop keeps; 1.0 keeps all of it."""
    interpolation: str = "bicubic"
    """One of `Interpolation`; `bicubic` has a = -0.5, `lanczos` 3 lobes."""
    antialias: bool = True
    """When shrinking, the filter is widened by the scale. Always true; stated for ports."""
    orientation: str = "exif"
    """Images are made upright according to their EXIF tag."""
    color: str = "RGB"
    """Channel order."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Color under transparent pixels."""
    jpeg_decoding: str = "scaled"
    """`scaled`: a JPEG much larger than the model's input is decoded at a reduced size, see `jpeg_scale`; `full`: never.

    Older specs lack this field and mean `full`. `full` is therefore left out of the JSON, which preserves their digests.
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
        """SHA-256 of the canonical JSON: two models have the same preprocessing exactly if their digests are equal."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def preprocess(data: bytes, spec: PreprocessSpec, limits: Limits = Limits()) -> np.ndarray:
    """Preprocess an image file to a model's input.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, GIF (first frame) or BMP.
        spec: the model's preprocessing.
        limits: larger images are rejected before decoding.

    Returns:
        uint8, shape (spec.height, spec.width, 3), RGB.

    Raises:
        ImageError: not an image, truncated, unsupported, or over the limits.
    """
    image, box = _decode(data, spec.background, limits, spec)
    return fit(image, spec, box)


def decode_image(data: bytes, background: tuple[int, int, int] = (255, 255, 255), limits: Limits = Limits()) -> Image.Image:
    """Decode an image file to upright 8-bit RGB at its own size.

    Raises:
        ImageError: as `preprocess`; `code` distinguishes the cases.
    """
    return _decode(data, background, limits, None)[0]


def _decode(
    data: bytes, background: tuple[int, int, int], limits: Limits, spec: PreprocessSpec | None
) -> tuple[Image.Image, Box | None]:
    """Decode to upright 8-bit RGB; if `spec` allows a reduced size, also return the box of the reduced image for `fit`."""
    if not data:
        raise ImageError("the image is empty (0 bytes)", code="image_empty")
    if len(data) > limits.max_bytes:
        raise ImageError(f"the image has {len(data):,} bytes, the limit is {limits.max_bytes:,}", code="image_too_large")
    image = _open(data, limits)
    try:
        box = None if spec is None else _reduce(image, spec)
        image.load()
        return _to_rgb(_upright(_without_unwritten_alpha(image)), background), box
    except ImageError:
        raise
    # On malicious bytes, Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError and more. All of
    # them mean that the image is invalid.
    except Exception as error:
        code = "image_truncated" if "truncated" in str(error) or isinstance(error, EOFError) else "image_invalid"
        if code == "image_truncated":
            image.close()  # frees its pixels before others are decoded
            if (ended := with_end_marker(data)) is not None:
                return _decode(ended, background, limits, spec)
        raise ImageError(f"the {image.format} data cannot be decoded: {_one_line(error)}", code=code) from error


def fit(image: Image.Image, spec: PreprocessSpec, box: Box | None = None) -> np.ndarray:
    """Crop and resize an upright RGB image to the model's input.

    Args:
        image: the image.
        spec: the model's preprocessing.
        box: the rectangle to resize; by default `crop_box`.

    Returns:
        uint8, shape (spec.height, spec.width, 3).
    """
    box = box or crop_box(image.width, image.height, spec)
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    # Not resize(box=) alone: at the edges it reads beyond the box, which ports that crop and then resize could not reproduce.
    cropped = image.crop((left, top, right, bottom))
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.asarray(cropped.resize((spec.width, spec.height), INTERPOLATIONS[spec.interpolation], inside))


def crop_box(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """Return the rectangle (left, top, right, bottom) that `fit` resizes, in whole pixels of the upright image."""
    scale = min(width / spec.width, height / spec.height) * spec.crop_fraction
    crop_width = max(1, round(spec.width * scale))
    crop_height = max(1, round(spec.height * scale))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def jpeg_scale(width: int, height: int, spec: PreprocessSpec) -> int:
    """Return the divisor by which a JPEG is reduced while decoding: 1, 2, 4 or 8; its sides are rounded up.

    It is the largest for which the rectangle of `crop_box` remains at least twice the model's input in both directions, so that
    the antialiased resize still determines the result.

    Args:
        width: of the upright image: with an EXIF orientation of 5 to 8, the stored height.
        height: of the upright image.
        spec: the model's preprocessing.
    """
    left, top, right, bottom = crop_box(width, height, spec)
    for scale in (8, 4, 2) if spec.jpeg_decoding == "scaled" else ():
        if right - left >= 2 * scale * spec.width and bottom - top >= 2 * scale * spec.height:
            return scale
    return 1


def reduced_box(width: int, height: int, orientation: int, scale: int, spec: PreprocessSpec) -> Box:
    """Return `crop_box` in the upright image that was decoded at 1/scale, in its pixels, possibly fractional.

    Args:
        width: of the upright image at full size.
        height: of the upright image at full size.
        orientation: its EXIF orientation.
        scale: 1, 2, 4 or 8.
        spec: the model's preprocessing.
    """
    left, top, right, bottom = crop_box(width, height, spec)
    # The last stored row and column are padded to whole pixels; rotated or mirrored, they may come first.
    x = -width % scale if orientation in RIGHT_EDGE_FIRST else 0
    y = -height % scale if orientation in BOTTOM_EDGE_FIRST else 0
    return (left + x) / scale, (top + y) / scale, (right + x) / scale, (bottom + y) / scale


def _open(data: bytes, limits: Limits) -> Image.Image:
    try:
        image = open_image(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = min(limits.max_pixels, PILLOW_MAX_PIXELS)
        raise ImageError(f"the image has more than {limit:,} pixels, the limit", code="image_too_large") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"the bytes are not an image in a supported format (JPEG, PNG, WebP, GIF, BMP){_other_kind(data)}",
            code="not_an_image",
        ) from error
    except Exception as error:  # a malicious header, see _decode
        raise ImageError(f"the image header cannot be read: {_one_line(error)}") from error
    if image.width * image.height > limits.max_pixels:
        raise ImageError(
            f"the image has {image.width} x {image.height} = {image.width * image.height:,} pixels, "
            f"the limit is {limits.max_pixels:,}",
            code="image_too_large",
        )
    return image


def _other_kind(data: bytes) -> str:
    """The end of a message about bytes of a known kind that is not supported."""
    kind = kind_of(data)
    if kind is None:
        return ""
    return f", they are {kind}" + ("; convert it to JPEG or PNG" if kind.endswith("image") else "")


def _reduce(image: Image.Image, spec: PreprocessSpec) -> Box | None:
    """Set up reduced decoding of a JPEG if `spec` allows it; return the box to resize."""
    if image.format not in ("JPEG", "MPO"):
        return None
    orientation = orientation_of(image)
    width, height = image.size[::-1] if orientation in SIDEWAYS else image.size
    scale = jpeg_scale(width, height, spec)
    if scale == 1:
        return None
    # Pillow chooses the largest reduction that stays above the given size, which is this scale. The mode is None because the
    # decoder would otherwise convert colors itself.
    image.draft(None, (image.width // scale, image.height // scale))
    return reduced_box(width, height, orientation, scale, spec)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 if it has no valid one."""
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which costs a copy and fails on malformed ones.
    try:
        value = image.getexif().get(EXIF_ORIENTATION)
        return value if value in UPRIGHT else 1
    except Exception:  # the pixels may be fine if the EXIF block is damaged; image viewers ignore it too
        return 1


def _upright(image: Image.Image) -> Image.Image:
    transpose = UPRIGHT.get(orientation_of(image))
    if transpose is None:
        return image
    info, image = image.info, image.transpose(transpose)
    image.info = info  # holds the transparency of palette images
    return image


def _without_unwritten_alpha(image: Image.Image) -> Image.Image:
    """Drop an alpha channel that is zero everywhere from a BMP: programs that know no transparency leave these bytes zero."""
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip all values over 255 to white.
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
