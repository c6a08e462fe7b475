"""Pixels depend on nothing but pixels: metadata, unwritten alpha, a missing end marker."""

import subprocess
import sys
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from edgeline.serve.drift.collector import origin_of
from edgeline.serve.errors import ImageError
from edgeline.serve.explain import region_of
from edgeline.serve.jpeg_end import lacks_end_marker, with_end_marker
from edgeline.serve.preprocess import Limits, PreprocessSpec, decode_image, jpeg_scale, preprocess
from tests.support.image_files import (
    EXIF,
    OPAQUE_BMP,
    PNG,
    WITH_METADATA,
    WITHOUT_END,
    bmp,
    chunk,
    encode,
    jpeg,
    picture,
    png,
    segment,
)

ROOT = Path(__file__).resolve().parents[2]
SPEC = PreprocessSpec(height=8, width=8)
SAME = WITH_METADATA | OPAQUE_BMP | WITHOUT_END
ALLOWED_WARNINGS = pytest.mark.filterwarnings("ignore:.*(EXIF|MPO|Truncated).*:UserWarning")


@ALLOWED_WARNINGS
@pytest.mark.parametrize(("data", "plain"), SAME.values(), ids=SAME)
def test_what_is_no_pixel_changes_no_pixel(data: bytes, plain: bytes) -> None:
    assert data != plain
    assert decode_image(data).tobytes() == decode_image(plain).tobytes()
    np.testing.assert_array_equal(preprocess(data, SPEC), preprocess(plain, SPEC))


@ALLOWED_WARNINGS
@pytest.mark.parametrize(("data", "plain"), SAME.values(), ids=SAME)
def test_an_accepted_image_is_explained_and_counted_too(data: bytes, plain: bytes) -> None:
    assert region_of(data, SPEC) == region_of(plain, SPEC)
    assert (origin_of(data).width, origin_of(data).height) == (90, 70)


def test_no_switch_of_pillows_is_changed() -> None:
    for data, _ in WITHOUT_END.values():
        decode_image(data)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert (PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS) == (2**20, 89_478_485)


ORIENTED = {
    "EXIF": chunk(b"eXIf", EXIF.replace(b"\1\0\0\0\1\0", b"\1\0\0\0\6\0")),
    "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    "a raw profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n32\n" + EXIF.replace(
        b"\1\0\0\0\1\0", b"\1\0\0\0\6\0").hex().encode())),
}  # fmt: skip


@pytest.mark.parametrize("tag", ORIENTED.values(), ids=ORIENTED)
def test_the_orientation_of_a_png_still_counts(tag: bytes) -> None:
    damage = chunk(b"tEXt", b"a", crc=1)
    for data in (png(tag), png(damage, tag), png(tag, damage)):
        assert decode_image(data).tobytes() == picture().transpose(Image.Transpose.ROTATE_270).tobytes()


def test_the_orientation_of_a_jpeg_counts_beside_damaged_metadata() -> None:
    turned = jpeg(segment(0xE2, b"ICC_PROFILE\0"), segment(0xE1, b"Exif\0\0" + EXIF.replace(b"\1\0\0\0\1\0", b"\1\0\0\0\6\0")))
    assert decode_image(turned).size == (70, 90)


PALETTE = encode(picture().quantize(8), "PNG")
STILL_AN_ERROR = {
    "a header of the wrong checksum": (PNG[:29] + b"1234" + PNG[33:], "not_an_image"),
    "a palette of the wrong checksum": (PALETTE[:41] + b"\1\2\3" + PALETTE[44:], "not_an_image"),
    "transparency of the wrong checksum": (png(chunk(b"tRNS", bytes(6), crc=1)), "not_an_image"),
    "no pixels": (png()[:60], "image_truncated"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), STILL_AN_ERROR.values(), ids=STILL_AN_ERROR)
def test_a_png_whose_pixels_are_damaged_is_still_an_error(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as rejection:
        decode_image(data)
    assert rejection.value.code == code


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_metadata_is_never_inflated(kind: bytes) -> None:
    """F13: 2,000 texts of 1 MB each in a file of 2 MB, under the name that ImageMagick uses for EXIF."""
    start = {b"zTXt": b"Raw profile type exif\0\0", b"iCCP": b"p\0\0", b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0"}[kind]
    bomb = png(*[chunk(kind, start + zlib.compress(b"0" * 1_000_000, 9))] * 2000)
    program = (
        "import resource, sys; from edgeline.serve.preprocess import decode_image\n"
        "data = sys.stdin.buffer.read(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; decode_image(data)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ended = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, check=True, cwd=ROOT)
    assert int(ended.stdout) < 20_000  # KiB


@pytest.mark.parametrize("limits", [Limits(max_bytes=1000), Limits(max_pixels=6299)])
def test_the_limits_are_the_same_with_metadata(limits: Limits) -> None:
    with pytest.raises(ImageError) as rejection:
        decode_image(png(chunk(b"tEXt", b"a", crc=1)), limits=limits)
    assert rejection.value.code == "image_too_large"


def test_alpha_that_was_written_to_a_bmp_is_composited() -> None:
    """F12: one pixel of 255 is enough; below the others the background shows."""
    alpha_HW = np.zeros((70, 90), np.uint8)
    alpha_HW[3, 5] = 255
    expected_HW3 = np.full((70, 90, 3), 255, np.uint8)
    expected_HW3[3, 5] = np.asarray(picture())[3, 5]
    np.testing.assert_array_equal(np.asarray(decode_image(bmp(alpha_HW))), expected_HW3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_transparent_png_or_webp_stays_transparent(kind: str) -> None:
    clear = picture()
    clear.putalpha(0)
    assert decode_image(encode(clear, kind, **({"exact": True} if kind == "WEBP" else {}))).getextrema() == ((255, 255),) * 3


def scan_of(data: bytes) -> int:
    """Offset of the compressed data of a JPEG's first scan."""
    at = data.index(b"\xff\xda") + 2
    return at + int.from_bytes(data[at : at + 2])


WAYS = {
    f"{'progressive' if progressive else 'restarts' if restarts else 'plain'}, subsampling {subsampling}, quality {quality}": {
        "progressive": progressive, "subsampling": subsampling, "quality": quality, **restarts,
    }
    for progressive, restarts, subsampling, quality in product(
        (False, True), ({}, {"restart_marker_rows": 1}), (0, 2), (30, 100)
    )
    if not (progressive and restarts)
}  # fmt: skip
MODES = {mode: picture(20, 18).convert(mode) for mode in ("RGB", "L", "CMYK")}  # more than one block in each direction


@pytest.mark.parametrize(
    ("way", "mode"), [(way, mode) for way, mode in product(WAYS, MODES) if mode != "L" or WAYS[way]["subsampling"] == 0]
)
def test_a_jpeg_that_is_cut_anywhere_in_its_data_is_rejected(way: str, mode: str) -> None:
    """G3: at every byte; that of the end marker alone is not missed."""
    whole = encode(MODES[mode], "JPEG", **WAYS[way])
    for end in range(scan_of(whole) + 1, len(whole) - 2):
        with pytest.raises(ImageError) as rejection:
            decode_image(whole[:end])
        assert rejection.value.code == "image_truncated"
    if not WAYS[way]["progressive"]:
        for end in (len(whole) - 2, len(whole) - 1):
            assert decode_image(whole[:end]).tobytes() == decode_image(whole).tobytes()


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 9}])
def test_a_jpeg_without_its_end_is_decoded_scaled_too(options: dict[str, int]) -> None:
    """G3: the scaled decoder, with every orientation; cut further, it is rejected."""
    spec = PreprocessSpec(height=24, width=32)
    assert jpeg_scale(640, 640, spec) == 8
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        whole = encode(picture(640, 640), "JPEG", exif=exif, **options)
        np.testing.assert_array_equal(preprocess(whole[:-2], spec), preprocess(whole, spec))
        with pytest.raises(ImageError, match="truncated"):
            preprocess(whole[:-3], spec)


def test_a_progressive_jpeg_without_its_end_is_rejected() -> None:
    """G3: only its end marker shows that no scan is missing."""
    whole = encode(picture(), "JPEG", progressive=True)
    scans = [at for at in range(len(whole)) if whole.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for end in (*scans[1:], len(whole) - 2):
        with pytest.raises(ImageError, match="truncated"):
            decode_image(whole[:end])


def test_a_missing_end_marker_is_found() -> None:
    whole = encode(picture(), "JPEG", exif=b"Exif\0\0" + EXIF + encode(picture(16, 16), "JPEG"))
    assert whole.count(b"\xff\xd9") == 2  # the preview's too
    assert [lacks_end_marker(data) for data in (whole, whole[:-1], whole[:-2], whole + bytes(9), PNG, b"")] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


NO_SENSE = {
    "no size": (5, bytes(4)),
    "no components": (9, b"\0"),
    "sampling of zero": (11, b"\0"),
    "sampling of 15": (11, b"\xff"),
    "as high as possible": (5, b"\xff\xff"),
}


@pytest.mark.parametrize(("at", "value"), NO_SENSE.values(), ids=NO_SENSE)
def test_a_header_without_sense_adds_no_end_marker(at: int, value: bytes) -> None:
    data = bytearray(encode(picture(), "JPEG", restart_marker_rows=1)[:-2])
    frame = data.index(b"\xff\xc0")
    data[frame + at : frame + at + len(value)] = value
    assert with_end_marker(bytes(data)) is None


def test_a_truncated_photo_takes_no_more_memory_than_a_whole_one() -> None:
    """G3: the pixels of the first attempt are freed before the second."""
    program = (
        "import resource, sys; from edgeline.serve.preprocess import decode_image; data = sys.stdin.buffer.read()\n"
        "for part in (data, data[:-2]): decode_image(part); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    photo = encode(picture(4000, 3000), "JPEG")
    ended = subprocess.run([sys.executable, "-c", program], input=photo, capture_output=True, check=True, cwd=ROOT)
    whole, without_end = map(int, ended.stdout.split())
    assert without_end < whole + 15_000  # KiB; the pixels are 48 MB


KINDS = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "they are a HEIC image; convert it to JPEG or PNG"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0", "they are an AVIF image; convert it to JPEG or PNG"),
    "MP4": (b"\0\0\0\x18ftypmp42\0\0\0\0", "they are a video"),
    "TIFF": (b"II*\0\x08\0\0\0", "they are a TIFF image; convert it to JPEG or PNG"),
    "a web page": (b"\n<!DOCTYPE html><title>404</title>", "they are a web page"),
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "they are a pointer of Git LFS; run git lfs pull",
    ),
}


@pytest.mark.parametrize(("data", "words"), KINDS.values(), ids=KINDS)
def test_a_file_of_another_kind_is_named_with_what_to_do(data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.code == "not_an_image"
    assert str(caught.value).endswith(words)


def test_unknown_bytes_are_only_not_an_image() -> None:
    with pytest.raises(ImageError, match=r"\(JPEG, PNG, WebP, GIF, BMP\)$"):
        decode_image(b"hello")
