"""Rows D06 to D17 of docs/fault-catalogue.md that no other test covers: rare, large and malicious image files."""

import contextlib
import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.errors import ImageError
from edgeline.serve.preprocess import decode_image

RED = (200, 40, 30)


def encode(kind: str, mode: str = "RGB", color: object = RED, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (48, 32), color).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# D06

OTHER_FORMATS = {
    "EPS": encode("EPS"),
    "TIFF": encode("TIFF"),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 48, 8, 3) + bytes(1000),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000),
    "PDF": encode("PDF"),
}
WATCHED = """
import sys
from edgeline.serve.errors import ImageError
from edgeline.serve.preprocess import decode_image

def forbid(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork"):
        print("started a program:", event, arguments)

sys.addaudithook(forbid)
for path in sys.argv[1:]:
    try:
        decode_image(open(path, "rb").read())
        print("decoded", path)
    except ImageError as error:
        if error.code != "not_an_image":
            print(error.code, path)
"""


def test_a_file_of_another_format_is_rejected_and_no_program_is_started(tmp_path: Path) -> None:
    """D06: Pillow would start Ghostscript for EPS."""
    for name, data in OTHER_FORMATS.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", WATCHED, *map(str, tmp_path.iterdir())]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


# D08


@pytest.mark.parametrize("value", [0, 257 * 5, 32896, 40_000, 65535])
def test_16_bit_rgb_is_scaled_and_not_clipped(value: int) -> None:
    """D08."""
    rows = (b"\0" + struct.pack(">HHH", value, 65535 - value, 257) * 9) * 7
    pixels = np.asarray(decode_image(png(9, 7, 16, 2, rows)), int)
    expected = np.array([value, 65535 - value, 257]) / 257
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (7, 9, 3)), rtol=0, atol=1)


# D10

FRAMES = 10_000
GIF_FRAME = b"!\xf9\x04\0\1\0\0\0,\0\0\0\0\x30\0\x20\0\0\2\2\x84\x51\0"


def animated_gif() -> bytes:
    still = encode("GIF")
    return still[:-1] + GIF_FRAME * FRAMES + b";"


def animated_png() -> bytes:
    pixels, frames = zlib.compress(bytes((48 * 3 + 1) * 32)), b""
    for number in range(FRAMES):
        control = struct.pack(">IIIIIHHBB", 2 * number + 1, 48, 32, 0, 0, 1, 10, 0, 0)
        data = struct.pack(">I", 2 * number + 2) + pixels
        frames += chunk(b"fcTL", control) + chunk(b"fdAT", data)
    still = encode("PNG")
    end = still.index(b"IEND") - 4
    return still[:33] + chunk(b"acTL", struct.pack(">II", FRAMES, 0)) + still[33:end] + frames + still[end:]


@pytest.mark.parametrize("make", [animated_gif, animated_png], ids=["GIF", "PNG"])
def test_of_ten_thousand_frames_the_first_is_decoded(make: Callable[[], bytes]) -> None:
    """D10."""
    data = make()
    start = time.process_time()
    image = decode_image(data)
    assert time.process_time() - start < 1
    np.testing.assert_allclose(np.asarray(image, int)[16, 24], RED, rtol=0, atol=2)


# D14 and D16


def peak_memory() -> int:
    """The largest resident memory of this process since `reset_peak_memory`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak_memory() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("needs Linux, to measure the peak of this process's memory")
    return peak_memory()


@pytest.mark.parametrize("side", [13_312, 20_000])
def test_a_bomb_costs_neither_time_nor_memory(side: int) -> None:
    """D14: a file of some 20 kB with 177 or 400 million pixels."""
    data = png(side, side, 1, 0, bytes(side * (side // 8 + 1)))
    assert len(data) < 100_000
    with pytest.raises(ImageError, match="pixels"):
        decode_image(data)
    before, start = reset_peak_memory(), time.process_time()
    with pytest.raises(ImageError, match="pixels"):
        decode_image(data)
    assert time.process_time() - start < 0.05
    assert peak_memory() - before < 50 * 10**6


def jpeg_segments(marker: bytes, count: int) -> bytes:
    segment = marker + struct.pack(">H", 65_535) + b"x" * 65_533
    still = encode("JPEG")
    return still[:2] + segment * count + still[2:]


def small_png(extra: bytes) -> bytes:
    return png(1, 1, 8, 2, b"\0\1\2\3", extra)


HUGE = 50 * 10**6
METADATA: dict[str, Callable[[], bytes]] = {
    "a compressed text": lambda: small_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(HUGE)))),
    "an international text": lambda: small_png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(HUGE)))),
    "a color profile": lambda: small_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(HUGE)))),
    "20,000 texts": lambda: small_png(chunk(b"tEXt", b"a\0" + b"b" * 100) * 20_000),
    "15 MB of comments in a JPEG": lambda: jpeg_segments(b"\xff\xfe", 240),
    "15 MB of EXIF in a JPEG": lambda: jpeg_segments(b"\xff\xe1", 240),
}


@pytest.mark.parametrize("make", METADATA.values(), ids=METADATA)
def test_metadata_takes_little_time_and_memory(make: Callable[[], bytes]) -> None:
    """D16: whether the image is decoded or rejected."""
    data = make()
    before, start = reset_peak_memory(), time.process_time()
    with contextlib.suppress(ImageError):
        decode_image(data)
    assert time.process_time() - start < 2
    assert peak_memory() - before < 40 * 10**6


# D17


def with_frame_header(change: dict[int, int]) -> bytes:
    """A baseline JPEG whose frame header has other bytes at some offsets from its marker."""
    data = bytearray(encode("JPEG"))
    start = data.index(b"\xff\xc0")
    for offset, value in change.items():
        data[start + offset] = value
    return bytes(data)


def many_restarts() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((1200, 800), 100).save(file, "JPEG", quality=30, restart_marker_blocks=1)
    assert file.getvalue().count(b"\xff\xd0") > 1000
    return file.getvalue()


UNUSUAL_JPEGS = {
    "progressive": encode("JPEG", progressive=True),
    "a restart marker after every block": many_restarts(),
    "ten thousand stray restart markers": encode("JPEG")[:-2] + b"\xff\xd0\xff\xd3" * 5_000 + b"\xff\xd9",
    "arithmetic coding": with_frame_header({1: 0xC9}),
    "12 bits": with_frame_header({4: 12}),
    "lossless": with_frame_header({1: 0xC3}),
}


@pytest.mark.parametrize("data", UNUSUAL_JPEGS.values(), ids=UNUSUAL_JPEGS)
def test_an_unusual_jpeg_is_decoded_or_rejected_quickly(data: bytes) -> None:
    """D17."""
    start = time.process_time()
    with contextlib.suppress(ImageError):
        assert decode_image(data).mode == "RGB"
    assert time.process_time() - start < 2


# D07


def test_a_ycck_jpeg_is_converted_by_its_definition() -> None:
    """D07: four channels as Photoshop writes them, YCC and K, all inverted."""
    inks = (100, 60, 200, 40)
    data = bytearray(encode("JPEG", "CMYK", inks, quality=100, subsampling=0))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0, "the stored channels are C, M, Y and K"
    y, blue, red, black = (255 - ink for ink in inks)
    data[transform] = 2  # from here on, they are Y, Cb, Cr and K
    converted = (
        y + 1.402 * (red - 128),
        y - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
        y + 1.772 * (blue - 128),
    )
    expected = black * (255 - np.clip(converted, 0, 255)) / 255
    pixels = np.asarray(decode_image(bytes(data)), float)
    np.testing.assert_allclose(pixels[16, 24], expected, rtol=0, atol=3)
