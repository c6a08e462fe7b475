"""Laws of preprocessing that hold for any size, mode, format, orientation and spec."""

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeline.serve.errors import ImageError
from edgeline.serve.preprocess import (
    INTERPOLATIONS,
    JPEG_DECODINGS,
    SIDEWAYS,
    UPRIGHT,
    Limits,
    PreprocessSpec,
    _decode,
    crop_box,
    decode_image,
    fit,
    jpeg_scale,
    preprocess,
)

few = settings(max_examples=40, derandomize=True)

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
}
CASES = [(kind, mode) for kind, modes in MODES.items() for mode in modes]
ORIENTED = ("PNG", "JPEG", "WEBP")
"""Formats that carry EXIF."""
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "BMP": {}}

side = st.one_of(st.integers(1, 12), st.integers(1, 400))
sizes = st.tuples(side, side)
specs = st.builds(
    PreprocessSpec,
    height=st.integers(1, 48),
    width=st.integers(1, 48),
    crop_fraction=st.floats(0.1, 1),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    jpeg_decoding=st.sampled_from(JPEG_DECODINGS),
)
levels = st.integers(0, 255)


def encode(picture: Image.Image, kind: str, *, orientation: int | None = None, **options: Any) -> bytes:
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    return picture.convert(mode)


def rejection_of(data: bytes, limits: Limits = Limits()) -> ImageError | None:
    try:
        preprocess(data, PreprocessSpec(height=8, width=8), limits)
    except ImageError as rejection:
        return rejection
    return None


@few
@given(sizes, st.sampled_from(CASES), st.integers(1, 8), st.booleans(), specs, st.integers(0, 99))
def test_any_image_becomes_pixels_of_the_specs_size_deterministically(
    size: tuple[int, int], case: tuple[str, str], orientation: int, transparent: bool, spec: PreprocessSpec, seed: int
) -> None:
    kind, mode = case
    options: dict[str, Any] = {"orientation": orientation} if kind in ORIENTED else {}
    options |= {"transparency": 0} if mode == "P" and transparent and kind in ("PNG", "GIF") else {}
    data = encode(in_mode(noise(size, seed), mode), kind, **options)
    pixels = preprocess(data, spec)
    assert (pixels.shape, pixels.dtype) == ((spec.height, spec.width, 3), np.uint8)
    np.testing.assert_array_equal(preprocess(data, spec), pixels)


@few
@given(sizes, st.sampled_from(["I", "F"]))
def test_modes_with_an_unknown_range_are_rejected_in_every_format(size: tuple[int, int], mode: str) -> None:
    picture = Image.new(mode, size)
    for kind in MODES:
        try:
            data = encode(picture, kind)
        except OSError:  # the format cannot hold it
            continue
        rejection = rejection_of(data)  # not PNG, which writes 32 bits as 16
        assert rejection is None or rejection.code == "mode_not_supported"


@few
@given(sizes, st.sampled_from(ORIENTED), st.sampled_from(sorted(UPRIGHT)), specs, st.integers(0, 99))
def test_an_image_with_an_orientation_equals_the_upright_one(
    size: tuple[int, int], kind: str, orientation: int, spec: PreprocessSpec, seed: int
) -> None:
    stored = noise(size, seed)
    options = LOSSLESS.get(kind, {"quality": 95})
    spec = replace(spec, jpeg_decoding="full")
    rotated = encode(stored, kind, orientation=orientation, **options)
    upright = decode_image(encode(stored, kind, **options)).transpose(UPRIGHT[orientation])
    np.testing.assert_array_equal(preprocess(rotated, spec), fit(upright, spec))


large = st.tuples(st.integers(1, 700), st.integers(1, 700))


@few
@given(large, st.sampled_from(MODES["JPEG"]), st.integers(1, 8), st.booleans(), specs)
def test_a_jpeg_is_decoded_at_exactly_its_scale(
    size: tuple[int, int], mode: str, orientation: int, progressive: bool, spec: PreprocessSpec
) -> None:
    data = encode(in_mode(noise(size, 0), mode), "JPEG", orientation=orientation, progressive=progressive)
    width, height = size[::-1] if orientation in SIDEWAYS else size
    scale = jpeg_scale(width, height, spec)
    image, box = _decode(data, spec.background, Limits(), spec)
    assert (image.mode, image.size) == ("RGB", (-(-width // scale), -(-height // scale)))
    assert (box is None) == (scale == 1)
    if scale == 1:
        np.testing.assert_array_equal(preprocess(data, spec), fit(decode_image(data), spec))


@few
@given(large, st.tuples(levels, levels, levels), st.integers(1, 8), specs)
def test_a_flat_jpeg_stays_that_color_at_every_scale(
    size: tuple[int, int], color: tuple[int, int, int], orientation: int, spec: PreprocessSpec
) -> None:
    data = encode(Image.new("RGB", size, color), "JPEG", quality=100, orientation=orientation)
    pixels = preprocess(data, spec).astype(int)
    np.testing.assert_allclose(pixels, np.broadcast_to(color, pixels.shape), rtol=0, atol=2)


@few
@given(sizes, st.tuples(levels, levels, levels), st.sampled_from(sorted(LOSSLESS)), specs)
def test_a_flat_color_stays_that_color(
    size: tuple[int, int], color: tuple[int, int, int], kind: str, spec: PreprocessSpec
) -> None:
    data = encode(Image.new("RGB", size, color), kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(preprocess(data, spec), np.broadcast_to(color, (spec.height, spec.width, 3)))


@few
@given(sizes, st.tuples(levels, levels, levels), levels, specs)
def test_transparent_pixels_are_composited_on_the_background(
    size: tuple[int, int], color: tuple[int, int, int], alpha: int, spec: PreprocessSpec
) -> None:
    pixels = preprocess(encode(Image.new("RGBA", size, (*color, alpha)), "PNG"), spec)
    share = alpha / 255
    expected = [share * c + (1 - share) * b for c, b in zip(color, spec.background, strict=True)]
    np.testing.assert_allclose(pixels.astype(float), np.broadcast_to(expected, pixels.shape), rtol=0, atol=1)


@few
@given(sizes, specs, st.integers(0, 99))
def test_a_mirrored_image_results_in_mirrored_pixels(size: tuple[int, int], spec: PreprocessSpec, seed: int) -> None:
    picture = noise(size, seed)
    left, _, right, _ = crop_box(picture.width, picture.height, spec)
    assume(left == picture.width - right)  # an odd rest puts the crop half a pixel off the center
    mirrored = fit(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), spec)
    np.testing.assert_allclose(mirrored.astype(int), fit(picture, spec)[:, ::-1].astype(int), rtol=0, atol=1)


@few
@given(sizes, specs, st.integers(0, 99))
def test_formats_without_loss_agree(size: tuple[int, int], spec: PreprocessSpec, seed: int) -> None:
    picture = noise(size, seed)
    png, *others = (preprocess(encode(picture, kind, **options), spec) for kind, options in LOSSLESS.items())
    for pixels in others:
        np.testing.assert_array_equal(pixels, png)


@few
@given(sizes, st.sampled_from(sorted(MODES)), st.integers(1, 2000), st.integers(1, 2000))
def test_an_image_is_decoded_exactly_if_it_is_within_the_limits(
    size: tuple[int, int], kind: str, max_pixels: int, max_bytes: int
) -> None:
    data = encode(Image.new("RGB", size), kind)
    within = size[0] * size[1] <= max_pixels and len(data) <= max_bytes
    rejection = rejection_of(data, Limits(max_pixels=max_pixels, max_bytes=max_bytes))
    assert (rejection is None) == within
    assert rejection is None or rejection.code == "image_too_large"


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A few bytes changed, removed or doubled, and the end cut off."""
    edits = draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("xdr"), st.binary(min_size=1, max_size=8)), max_size=6))
    cached = draw(st.floats(0.1, 1))

    def apply(data: bytes) -> bytes:
        changed = bytearray(data)
        for where, how, what in edits:
            at = int(where * len(changed))
            changed[at : at + len(what) * (how != "d")] = b"" if how == "r" else what
        return bytes(changed[: max(1, int(cached * len(changed)))])

    return apply


@settings(max_examples=150, derandomize=True)
@given(st.sampled_from(CASES), sizes, damages(), st.integers(1, 8))
def test_hostile_bytes_raise_nothing_but_image_errors(
    case: tuple[str, str], size: tuple[int, int], damage: Damage, orientation: int
) -> None:
    kind, mode = case
    options: dict[str, Any] = {"orientation": orientation} if kind in ORIENTED else {}
    data = damage(encode(in_mode(noise(size, 0), mode), kind, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow warns of odd EXIF
        rejection = rejection_of(data, Limits(max_pixels=200_000))
    assert "\n" not in str(rejection)


@pytest.mark.parametrize("kind", sorted(MODES))
def test_the_table_of_modes_is_complete(kind: str) -> None:
    picture = noise((9, 7), 0)
    for mode in MODES[kind]:
        assert decode_image(encode(in_mode(picture, mode), kind)).size == (9, 7)
