"""Stress images: generated images that break careless preprocessing, identical on every machine.

Verification uses them in addition to the user's own images. Their preprocessed pixels are also stored with a checkpoint as
the *preprocessing fingerprint*. It reveals a change of preprocessing code or of the image library between training and
verification, which a hash of the settings would not.
"""

import io
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeline.serve.artifact.pixel_difference import likely_cause
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import EXIF_ORIENTATION, PreprocessSpec, preprocess

FINGERPRINT_NAME = "preprocessing_fingerprint.npz"
MAX_FINGERPRINT_DIFFERENCE = 1.0
"""Largest mean difference of an image's pixels, of 255, that another build of the image library may cause."""

ROWS = 64
"""Rows of an image that are drawn at a time."""


@cache
def stress_images() -> dict[str, bytes]:
    """Return encoded images by name. The name describes what is difficult about an image."""
    scene = _scene(480, 360)
    gray = np.asarray(scene.convert("L"))
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 480, dtype=np.uint8), (360, 1)))
    noise = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return {
        "black": _encode(Image.new("RGB", (320, 240)), "PNG"),
        "white": _encode(Image.new("RGB", (320, 240), "white"), "PNG"),
        "noise": _encode(Image.fromarray(noise), "PNG"),
        "one_pixel": _encode(Image.new("RGB", (1, 1), (200, 60, 30)), "PNG"),
        "strip": _encode(scene.resize((2000, 3)), "PNG"),
        "huge": _encode(_scene(6000, 4000), "JPEG", quality=80),
        "scene": _encode(scene, "PNG"),
        "exif_rotated": _encode(scene, "JPEG", quality=95, exif=exif),
        "cmyk": _encode(scene.convert("CMYK"), "JPEG", quality=95),
        "gray": _encode(scene.convert("L"), "JPEG", quality=95),
        "gray_16_bit": _encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        "alpha": _encode(_with_alpha(scene, alpha), "PNG"),
        "palette_alpha": _encode(scene.quantize(32), "PNG", transparency=3),
    }


def preprocessing_fingerprint(spec: PreprocessSpec) -> dict[str, np.ndarray]:
    """Return the preprocessed pixels of the stress images by name, uint8 (H, W, 3) each."""
    return {name: preprocess(data, spec) for name, data in stress_images().items()}


def write_preprocessing_fingerprint(path: Path, spec: PreprocessSpec) -> None:
    """Write the preprocessing fingerprint to an .npz file."""
    pixels: dict[str, Any] = preprocessing_fingerprint(spec)
    np.savez_compressed(path, **pixels)


def check_preprocessing(path: Path, spec: PreprocessSpec) -> float:
    """Compare the current preprocessing with that at training time.

    Args:
        path: the fingerprint that was written at training time.
        spec: the preprocessing of the checkpoint.

    Returns:
        The largest mean difference of an image's pixels, of 255.

    Raises:
        VerificationError: a stress image is preprocessed differently, or the fingerprint is missing or damaged.
    """
    try:
        # From memory: np.load leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            then = {name: file[name] for name in stress_images()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise VerificationError(
            f"{path} is not a valid preprocessing fingerprint ({error}); train again", code="preprocess_changed"
        ) from error
    now = preprocessing_fingerprint(spec)
    differences = {name: _mean_difference(pixels_HW3, then[name]) for name, pixels_HW3 in now.items()}
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > MAX_FINGERPRINT_DIFFERENCE:
        off = [name for name in differences if differences[name] > MAX_FINGERPRINT_DIFFERENCE]
        raise VerificationError(
            f"preprocessing differs from that at training time: the stress images {', '.join(off)} differ, by up to "
            f"{differences[worst]:.1f} of 255 ({worst}): {likely_cause(then[worst], now[worst])}; use the same "
            "edgeline and Pillow, or train again",
            code="preprocess_changed",
        )
    return differences[worst]


def _mean_difference(now_HW3: np.ndarray, then_HW3: np.ndarray) -> float:
    if now_HW3.shape != then_HW3.shape:
        return 255.0
    return float(np.abs(now_HW3.astype(np.int16) - then_HW3).mean())


def _scene(width: int, height: int) -> Image.Image:
    """An asymmetric color scene: gradients, fine stripes, and blocks of saturated color in two corners."""
    x_1W = np.arange(width)[None] / max(width, height)
    pixels_HW3 = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, ROWS):  # a whole image of doubles would not fit into the processor's cache
        y_R1 = np.arange(top, min(top + ROWS, height))[:, None] / max(width, height)
        stripes_RW = 40 * np.sign(np.sin(2 * np.pi * 60 * (x_1W + 0.37 * y_R1)))
        channels = (220 * x_1W + stripes_RW, 40 + 200 * y_R1, 190 - 150 * x_1W * (1 - y_R1) - stripes_RW)
        for channel, levels in enumerate(channels):
            pixels_HW3[top : top + ROWS, :, channel] = levels.clip(0, 255)
    pixels_HW3[: height // 4, : width // 3] = (230, 40, 20)
    pixels_HW3[height * 3 // 5 :, width * 5 // 8 :] = (20, 60, 235)
    return Image.fromarray(pixels_HW3)


def _with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    result = image.convert("RGBA")
    result.putalpha(alpha)
    return result


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
