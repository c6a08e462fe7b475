"""The one implementation of preprocessing, against references that do not share its code."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from edgeline.serve.errors import ImageError, ManifestError
from edgeline.serve.preprocess import (
    INTERPOLATIONS,
    Limits,
    PreprocessSpec,
    crop_box,
    decode_image,
    fit,
    jpeg_scale,
    preprocess,
    reduced_box,
)

SPEC = PreprocessSpec(height=24, width=32)
RED, GREEN = (200, 40, 30), (30, 190, 50)


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int) -> Image.Image:
    smooth = np.random.default_rng(7).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)


def flat(mode: str, color: Any) -> Image.Image:
    return Image.new(mode, (9, 7), color)


def palette(transparent: int | None = None) -> bytes:
    picture = flat("P", 1)
    picture.putpalette([0, 0, 0, *RED])
    return encode(picture, **({} if transparent is None else {"transparency": transparent}))


def gray16(value: int) -> bytes:
    return encode(Image.fromarray(np.full((7, 9), value, np.uint16)))


FRAMES: dict[str, Any] = {"save_all": True, "append_images": [flat("RGB", GREEN)], "duration": 100}
MODES = {
    "L": (encode(flat("L", 100)), (100, 100, 100)),
    "L with a transparent gray": (encode(flat("L", 100), transparency=100), (255, 255, 255)),
    "LA, half transparent on white": (encode(flat("LA", (100, 128))), (177, 177, 177)),
    "1, black": (encode(flat("1", 0)), (0, 0, 0)),
    "1, white": (encode(flat("1", 1)), (255, 255, 255)),
    "P": (palette(), RED),
    "P with alpha": (palette(transparent=1), (255, 255, 255)),
    "RGBA, opaque": (encode(flat("RGBA", (*RED, 255))), RED),
    "RGBA, fully transparent": (encode(flat("RGBA", (*RED, 0))), (255, 255, 255)),
    "RGBA, half transparent": (encode(flat("RGBA", (*RED, 128))), (227, 147, 142)),
    "RGB with a transparent color": (encode(flat("RGB", RED), transparency=RED), (255, 255, 255)),
    "CMYK JPEG": (encode(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0)),
    "gray JPEG": (encode(flat("L", 100), "JPEG", quality=95), (100, 100, 100)),
    "16-bit gray, middle": (gray16(32896), (128, 128, 128)),
    "16-bit gray, dark": (gray16(257 * 5), (5, 5, 5)),
    "16-bit gray, white": (gray16(65535), (255, 255, 255)),
    "BMP": (encode(flat("RGB", RED), "BMP"), RED),
    "animated GIF": (encode(flat("RGB", RED), "GIF", **FRAMES), RED),
    "animated WebP": (encode(flat("RGB", RED), "WEBP", lossless=True, **FRAMES), RED),
    "animated PNG": (encode(flat("RGB", RED), **FRAMES), RED),
    "MPO, as phones write it": (encode(flat("RGB", RED), "MPO", **FRAMES), RED),
}


@pytest.mark.parametrize(("data", "expected"), MODES.values(), ids=MODES)
def test_every_image_mode_becomes_8_bit_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (9, 7))
    np.testing.assert_allclose(np.asarray(image, int), np.broadcast_to(expected, (7, 9, 3)), rtol=0, atol=2)


def test_transparency_uses_the_background_of_the_spec() -> None:
    assert decode_image(encode(flat("RGBA", (0, 0, 0, 0))), background=(1, 2, 3)).getpixel((4, 4)) == (1, 2, 3)


def test_an_mpo_photo_is_opened_as_its_first_image() -> None:
    data = encode(noise(30, 40), "MPO", save_all=True, append_images=[noise(60, 80)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode_image(data).size == (40, 30)


# EXIF 2.32, table 6: the side of the upright image on which the first row and the first column are.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def as_stored(upright_HW3: np.ndarray, orientation: int) -> Image.Image:
    rows, columns = SIDES[orientation]
    stored = upright_HW3 if rows in ("top", "bottom") else upright_HW3.transpose(1, 0, 2)
    stored = stored[::-1] if rows in ("bottom", "right") else stored
    stored = stored[:, ::-1] if columns in ("bottom", "right") else stored
    return Image.fromarray(np.ascontiguousarray(stored))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", SIDES)
def test_every_exif_orientation_results_in_the_same_upright_image(orientation: int, kind: str) -> None:
    upright = np.asarray(noise(40, 64))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(as_stored(upright, orientation), kind, exif=exif_of(orientation), **options)
    np.testing.assert_allclose(np.asarray(decode_image(data), int), upright, rtol=0, atol=6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    picture = noise(20, 30)
    assert decode_image(encode(picture, exif=exif_of(orientation))).tobytes() == picture.tobytes()


BROKEN_EXIF = {
    "garbage": b"Exif\0\0" + bytes(range(64)),
    "cut after the byte order": b"Exif\0\0II*\0",
    "an offset beyond the end": b"Exif\0\0II*\0" + struct.pack("<I", 2**31 - 1),
    "an entry with an invalid offset": b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 5, 900, 2**30),
    "empty": b"Exif\0\0",
}


@pytest.mark.filterwarnings("ignore:.*EXIF.*:UserWarning", "ignore:Tag data.*:UserWarning")
@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_a_broken_exif_block_is_ignored(block: bytes) -> None:
    picture = noise(20, 30)
    plain, broken = (encode(picture, "JPEG", **options) for options in ({}, {"exif": block}))
    assert len(broken) > len(plain)
    assert decode_image(broken).tobytes() == decode_image(plain).tobytes()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(5000))) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = encode(flat("RGB", RED), "JPEG")
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def bmp_header(width: int, height: int) -> bytes:
    data = encode(flat("RGB", RED), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def gif_header(width: int, height: int) -> bytes:
    data = encode(flat("RGB", RED), "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


BOMBS = {
    "PNG under Pillow's own warning": png_header(8000, 8000),
    "PNG that Pillow only warns of": png_header(13312, 13312),
    "PNG that Pillow rejects": png_header(20032, 20032),
    "PNG of 2^31 rows": png_header(1, 2**31 - 1),
    "JPEG": jpeg_header(65000, 65000),
    "BMP": bmp_header(40000, 40000),
    "GIF": gif_header(65535, 65535),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_rejected_from_its_header(data: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(ImageError, match="pixels") as rejection:
        decode_image(data)
    assert rejection.value.code == "image_too_large"
    assert time.perf_counter() - start < 1  # decoding the second one takes 2.6 s


def test_the_error_names_the_limit_that_applied() -> None:
    with pytest.raises(ImageError, match="178,956,970"):
        decode_image(png_header(20032, 20032), limits=Limits(max_pixels=10**10))


def test_the_pixel_limit_itself_is_allowed() -> None:
    assert decode_image(encode(flat("RGB", RED)), limits=Limits(max_pixels=63)).size == (9, 7)
    with pytest.raises(ImageError, match=r"9 x 7 = 63 pixels, the limit is 62"):
        decode_image(encode(flat("RGB", RED)), limits=Limits(max_pixels=62))


REJECTED = {
    "empty": (b"", "image_empty"),
    "text": (b"hello", "not_an_image"),
    "html": (b"<html><body>no</body></html>", "not_an_image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
    "pdf": (b"%PDF-1.7\n", "not_an_image"),
    "tiff": (encode(flat("RGB", RED), "TIFF"), "not_an_image"),
    "eps": (encode(flat("RGB", RED), "EPS"), "not_an_image"),
    "ico": (encode(flat("RGB", RED), "ICO"), "not_an_image"),
    "half a jpeg": (encode(noise(60, 80), "JPEG")[:1500], "image_truncated"),
    "zero width": (png_header(0, 5), "not_an_image"),
}


@pytest.mark.parametrize(("data", "code"), REJECTED.values(), ids=REJECTED)
def test_a_bad_image_is_rejected_by_its_code(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as rejection:
        decode_image(data)
    assert rejection.value.code == code
    assert "\n" not in str(rejection.value)


def test_too_many_bytes_are_rejected_without_decoding() -> None:
    with pytest.raises(ImageError, match="101 bytes, the limit is 100") as rejection:
        decode_image(bytes(101), limits=Limits(max_bytes=100))
    assert rejection.value.code == "image_too_large"


WHOLE = {
    "JPEG": encode(noise(60, 80), "JPEG"),
    "progressive JPEG": encode(noise(60, 80), "JPEG", progressive=True),
    "PNG": encode(noise(60, 80)),
    "WebP": encode(noise(60, 80), "WEBP"),
    "lossless WebP": encode(noise(60, 80), "WEBP", lossless=True),
    "GIF": encode(noise(60, 80), "GIF"),
    "BMP": encode(noise(60, 80), "BMP"),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_a_truncated_file_is_an_error_and_never_a_gray_half(data: bytes) -> None:
    accepted = []
    for length in [*(len(data) * percent // 100 for percent in range(1, 100)), len(data) - 30]:
        try:
            decode_image(data[:length])
        except ImageError:
            continue
        accepted.append(length)
    assert accepted == []


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_a_file_without_its_last_bytes_is_rejected_or_complete(data: bytes) -> None:
    expected = decode_image(data).tobytes()
    for missing in range(1, 30):
        try:
            assert decode_image(data[:-missing]).tobytes() == expected
        except ImageError:
            continue


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_image_errors(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_damaged_files_raise_nothing_but_image_errors(data: bytes) -> None:
    random = np.random.default_rng(3)
    decoded = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 6)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        try:
            image = decode_image(bytes(damaged), limits=Limits(max_pixels=100_000))
        except ImageError:
            continue
        decoded += 1
        assert image.mode == "RGB"
    assert decoded < 150


THIN = {"one pixel": (1, 1), "a row": (10_000, 1), "a column": (1, 10_000)}


@pytest.mark.parametrize("size", THIN.values(), ids=THIN)
def test_the_thinnest_images_are_accepted(size: tuple[int, int]) -> None:
    pixels = preprocess(encode(Image.new("RGB", size, RED)), SPEC)
    assert pixels.shape == (24, 32, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(RED, (24, 32, 3)))


def cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def triangle(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def resample(levels: np.ndarray, size: int, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Antialiased resampling of the first axis from the definition: a kernel as wide as the scale, weights that sum to 1."""
    scale = len(levels) / size
    centers = (np.arange(size) + 0.5) * scale
    weights = kernel((np.arange(len(levels)) + 0.5 - centers[:, None]) / max(scale, 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.rint(np.tensordot(weights, levels, 1)), 0, 255)


KERNELS = {"bilinear": triangle, "bicubic": cubic, "lanczos": lanczos}


def test_every_resize_filter_is_compared_with_its_definition() -> None:
    assert KERNELS.keys() == set(INTERPOLATIONS)


SIZES = {"shrinks": (90, 130), "grows": (13, 11), "mixed": (20, 300)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_crop_and_resize_match_their_definition(name: str, size: tuple[int, int]) -> None:
    spec = PreprocessSpec(height=24, width=32, interpolation=name, crop_fraction=0.8)
    picture = noise(*size)
    left, top, right, bottom = crop_box(picture.width, picture.height, spec)
    cut = np.asarray(picture)[top:bottom, left:right].astype(float)
    across = resample(cut.transpose(1, 0, 2), 32, KERNELS[name]).transpose(1, 0, 2)
    np.testing.assert_allclose(fit(picture, spec).astype(int), resample(across, 24, KERNELS[name]), rtol=0, atol=1)


def test_nothing_outside_the_crop_has_an_influence() -> None:
    spec = PreprocessSpec(height=24, width=32, crop_fraction=0.5)
    picture = noise(120, 160)
    left, top, right, bottom = crop_box(160, 120, spec)
    other = Image.new("RGB", picture.size, GREEN)
    other.paste(picture.crop((left, top, right, bottom)), (left, top))
    np.testing.assert_array_equal(fit(other, spec), fit(picture, spec))


sides = st.integers(1, 20_000)
specs = st.builds(
    PreprocessSpec, height=st.integers(1, 600), width=st.integers(1, 600), crop_fraction=st.floats(0.1, 1, allow_nan=False)
)


@given(sides, sides, specs)
def test_the_crop_lies_inside_is_centered_and_keeps_the_aspect(width: int, height: int, spec: PreprocessSpec) -> None:
    left, top, right, bottom = crop_box(width, height, spec)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert 0 <= (width - right) - left <= 1
    assert 0 <= (height - bottom) - top <= 1
    scale = spec.crop_fraction * min(width / spec.width, height / spec.height)
    assert abs(right - left - spec.width * scale) <= 0.5 or right - left == 1
    assert abs(bottom - top - spec.height * scale) <= 0.5 or bottom - top == 1


# Scaled decoding.

SMALL = PreprocessSpec(height=24, width=32, crop_fraction=0.75)
# 32 x 24 from the middle three quarters: a picture needs 8/3 of 32 x 24 for each halving, which is 86 x 64.
SCALES = {
    "as large as twice the input": (86, 64, 1),
    "too low by a row": (1000, 126, 1),
    "high enough for a half": (1000, 128, 2),
    "too narrow by a column": (169, 1000, 1),
    "wide enough for a half": (170, 1000, 2),
    "too low for a quarter": (1000, 254, 2),
    "high enough for a quarter": (1000, 256, 4),
    "too low for an eighth": (1000, 510, 4),
    "high enough for an eighth": (1000, 512, 8),
    "a photo": (4032, 3024, 8),
    "one pixel": (1, 1, 1),
}


@pytest.mark.parametrize(("width", "height", "scale"), SCALES.values(), ids=SCALES)
def test_an_image_is_decoded_at_the_smallest_size_above_twice_the_input(width: int, height: int, scale: int) -> None:
    assert jpeg_scale(width, height, SMALL) == scale
    assert jpeg_scale(width, height, replace(SMALL, jpeg_decoding="full")) == 1


@pytest.mark.parametrize("height", [24, 32])
def test_both_sides_must_remain_twice_the_input(height: int) -> None:
    spec = PreprocessSpec(height=height, width=56 - height, crop_fraction=0.99)
    size = (48, 1000) if height == 32 else (1000, 48)
    left, top, right, bottom = crop_box(*size, spec)
    assert sorted((right - left, bottom - top)) == [48, 63], "rounded up on one side, down on the other"
    assert jpeg_scale(*size, spec) == 1


@given(sides, sides, specs)
def test_no_larger_scale_would_leave_twice_the_input(width: int, height: int, spec: PreprocessSpec) -> None:
    scale = jpeg_scale(width, height, spec)
    left, top, right, bottom = crop_box(width, height, spec)
    times = min((right - left) / spec.width, (bottom - top) / spec.height)
    assert scale in (1, 2, 4, 8)
    assert scale == 1 or times >= 2 * scale
    assert scale == 8 or times < 4 * scale


@given(sides, sides, st.sampled_from(sorted(SIDES)), st.sampled_from([1, 2, 4, 8]), specs)
def test_the_box_lies_within_the_reduced_image(
    width: int, height: int, orientation: int, scale: int, spec: PreprocessSpec
) -> None:
    left, top, right, bottom = reduced_box(width, height, orientation, scale, spec)
    assert 0 <= left < right <= -(-width // scale)
    assert 0 <= top < bottom <= -(-height // scale)
    if scale == 1:
        assert (left, top, right, bottom) == crop_box(width, height, spec)


def photo_like(width: int, height: int) -> Image.Image:
    """Lightness changes from pixel to pixel, color over a wider range, as in photos: half of the decoders halve color."""
    light = noise(height, width).convert("L")
    color = noise(height // 8, width // 8).resize((width, height), Image.Resampling.BICUBIC).convert("YCbCr")
    return Image.merge("YCbCr", (light, *color.split()[1:])).convert("RGB")


def levels_apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:2:0": ("RGB", {"subsampling": 2}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "with restarts": ("RGB", {"restart_marker_rows": 1}),
    "gray": ("L", {}),
    "CMYK": ("CMYK", {}),
}


@pytest.mark.parametrize("size", [(400, 300), (397, 299), (203, 151), (171, 801)], ids=str)
@pytest.mark.parametrize(("mode", "options"), JPEGS.values(), ids=JPEGS)
def test_scaled_decoding_results_in_the_same_image(mode: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    data = encode(photo_like(*size).convert(mode), "JPEG", quality=92, **options)
    scaled, full = preprocess(data, SMALL), preprocess(data, replace(SMALL, jpeg_decoding="full"))
    assert jpeg_scale(*size, SMALL) > 1
    assert scaled.tobytes() != full.tobytes(), "nothing was scaled"
    assert levels_apart(scaled, full) < 2


@pytest.mark.parametrize("size", [(400, 304), (397, 299), (299, 397)], ids=str)
@pytest.mark.parametrize("orientation", SIDES)
def test_a_rotated_photo_is_scaled_and_cropped_like_the_upright_one(orientation: int, size: tuple[int, int]) -> None:
    data = encode(as_stored(np.asarray(photo_like(*size)), orientation), "JPEG", quality=95, exif=exif_of(orientation))
    scaled, full = preprocess(data, SMALL), preprocess(data, replace(SMALL, jpeg_decoding="full"))
    assert scaled.tobytes() != full.tobytes(), "nothing was scaled"
    assert levels_apart(scaled, full) < 1.5, "half a pixel of the reduced image to the side would be 5"


def test_the_scale_is_chosen_for_the_upright_image() -> None:
    picture, spec = noise(400, 130), PreprocessSpec(height=60, width=20)
    data = encode(picture, "JPEG", exif=exif_of(6))
    assert (jpeg_scale(130, 400, spec), jpeg_scale(400, 130, spec)) == (2, 1)
    assert preprocess(data, spec).tobytes() == preprocess(data, replace(spec, jpeg_decoding="full")).tobytes()


def test_the_first_image_of_an_mpo_photo_is_scaled_too() -> None:
    picture = noise(300, 400)
    mpo = encode(picture, "MPO", save_all=True, append_images=[noise(60, 80)])
    np.testing.assert_array_equal(preprocess(mpo, SMALL), preprocess(encode(picture, "JPEG"), SMALL))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF"])
def test_only_jpeg_is_scaled(kind: str) -> None:
    data = encode(noise(300, 400), kind)
    np.testing.assert_array_equal(preprocess(data, SMALL), preprocess(data, replace(SMALL, jpeg_decoding="full")))


def test_decode_image_decodes_at_full_size() -> None:
    assert decode_image(encode(noise(300, 400), "JPEG")).size == (400, 300)


def test_the_pixel_limit_applies_to_the_full_size() -> None:
    with pytest.raises(ImageError, match=r"400 x 300 = 120,000 pixels, the limit is 119,999"):
        preprocess(encode(noise(300, 400), "JPEG"), SMALL, Limits(max_pixels=119_999))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_rejected_when_it_is_scaled_too(progressive: bool) -> None:
    data = encode(noise(300, 400), "JPEG", progressive=progressive)
    for length in [*(len(data) * percent // 100 for percent in range(1, 100)), len(data) - 30]:
        with pytest.raises(ImageError):
            preprocess(data[:length], SMALL)


def test_a_spec_survives_json_and_keeps_its_digest() -> None:
    spec = PreprocessSpec(height=224, width=200, crop_fraction=0.9, interpolation="bilinear", background=(0, 1, 2))
    again = PreprocessSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.digest() == spec.digest()


# Specs with their digests from manifests and checkpoints that are older than scaled decoding.
OLD = {
    "5ecd213a982d6f58f9c8617cd5878d24572b733d43c5b4ba6d88eb594b135cff": {
        "height": 224,
        "width": 224,
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        "antialias": True,
        "orientation": "exif",
        "color": "RGB",
        "background": [255, 255, 255],
    },
    "29b5a4bc321845b18267f856c63472bca9e9514bdc3d2a96ecd419b334c40bd9": {
        "height": 224,
        "width": 200,
        "crop_fraction": 0.9,
        "interpolation": "bilinear",
        "antialias": True,
        "orientation": "exif",
        "color": "RGB",
        "background": [0, 1, 2],
    },
}


@pytest.mark.parametrize("digest", OLD)
def test_a_spec_older_than_scaled_decoding_decodes_in_full_and_keeps_its_digest(digest: str) -> None:
    spec = PreprocessSpec.from_dict(OLD[digest])
    assert spec.jpeg_decoding == "full"
    assert spec.to_dict() == OLD[digest]
    assert spec.digest() == digest
    assert PreprocessSpec.from_dict({**OLD[digest], "jpeg_decoding": "full"}) == spec


CHANGES: dict[str, dict[str, Any]] = {
    "height": {"height": 225},
    "width": {"width": 225},
    "crop_fraction": {"crop_fraction": 0.9},
    "interpolation": {"interpolation": "bilinear"},
    "background": {"background": (0, 0, 0)},
    "jpeg_decoding": {"jpeg_decoding": "full"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_different_specs_have_different_digests(change: dict[str, Any]) -> None:
    plain = {"height": 224, "width": 224}
    assert PreprocessSpec(**plain | change).digest() != PreprocessSpec(**plain).digest()


def test_all_problems_of_a_spec_are_reported_at_once() -> None:
    with pytest.raises(ManifestError) as rejection:
        PreprocessSpec(
            height=0,
            width=9999,
            crop_fraction=2,
            interpolation="nearest",
            antialias=False,
            color="BGR",
            background=(1, 2, 300),
            jpeg_decoding="half",
        )
    for name in ("height", "width", "crop_fraction", "interpolation", "antialias", "color", "background", "jpeg_decoding"):
        assert name in str(rejection.value)


BAD_SPECS: dict[str, Any] = {
    "no object": [],
    "a field missing": {"height": 1},
    "an unknown field": {**SPEC.to_dict(), "mean": 0.5},
    "text for a number": {**SPEC.to_dict(), "height": "24"},
    "a background of the wrong type": {**SPEC.to_dict(), "background": 3},
    "an unknown way of decoding": {**SPEC.to_dict(), "jpeg_decoding": 2},
}


@pytest.mark.parametrize("data", BAD_SPECS.values(), ids=BAD_SPECS)
def test_a_bad_spec_is_rejected(data: Any) -> None:
    with pytest.raises(ManifestError, match="preprocess"):
        PreprocessSpec.from_dict(data)


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels"])
def test_a_limit_is_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"limits.{name} must be at least 1, got 0"):
        Limits(**{name: 0})


def test_this_pillow_reads_all_formats() -> None:
    assert features.check("webp")
    assert features.check("jpg")
