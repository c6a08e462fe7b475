"""JPEGs in a stream are separated by their markers, and damage affects a single frame."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeline.serve.errors import InputError
from edgeline.serve.inputs.mjpeg import from_mjpeg
from edgeline.serve.preprocess import decode_image

LIMIT = 100_000


def jpeg(seed: int, *, progressive: bool = False, thumbnail: bytes = b"", restart: int = 0) -> bytes:
    """A JPEG of noise, so that its compressed data has many stuffed bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 104, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010E] = b"\0" + thumbnail if thumbnail else "frame"
    file = io.BytesIO()
    options = {"restart_marker_blocks": restart} if restart else {}
    Image.fromarray(pixels).save(file, "JPEG", quality=90, progressive=progressive, exif=exif, **options)
    return file.getvalue()


FRAMES = [
    jpeg(0),
    jpeg(1, progressive=True),
    jpeg(2, restart=1),
    jpeg(3, thumbnail=jpeg(4)),
    jpeg(5, restart=1).replace(b"\xff\xd9", b"\xff\xff\xd9").replace(b"\xff\xd3", b"\xff\xff\xd3"),  # fill bytes
]


def contents(stream: bytes, size: int = 1000, limit: int = LIMIT) -> list[bytes | str]:
    """The frames of a stream in chunks of a size: bytes, or the code of an error; numbered without a gap."""
    pictures = list(from_mjpeg((stream[at : at + size] for at in range(0, len(stream), size)), limit))
    assert [picture.where["frame"] for picture in pictures] in (list(range(1, len(pictures) + 1)), [0])
    return [p.content.code if isinstance(p.content, InputError) else bytes(p.content) for p in pictures]  # type: ignore[arg-type]


def test_the_frames_of_these_tests_have_the_intended_markers() -> None:
    assert FRAMES[0].count(b"\xff\x00") > 3
    assert FRAMES[1].count(b"\xff\xda") > 3
    assert b"\xff\xd3" in FRAMES[2]
    assert FRAMES[3].count(b"\xff\xd8\xff") == 2
    for frame in FRAMES:
        decode_image(frame)


@pytest.mark.parametrize("between", [b"", b"\0" * 7, b"\r\n--edge\r\nContent-Type: image/jpeg\r\n\r\n", b"\xff"])
@pytest.mark.parametrize("size", [1, 2, 999, 10**6])
def test_every_frame_is_complete_for_any_chunk_size_and_bytes_between_frames(size: int, between: bytes) -> None:
    assert contents(between.join([b"", *FRAMES, b""]), size) == FRAMES


def test_a_frame_is_returned_with_its_last_byte() -> None:
    def chunks() -> Iterator[bytes]:
        yield FRAMES[0]
        raise AssertionError("read more than the first frame")

    assert next(from_mjpeg(chunks(), LIMIT)).content == FRAMES[0]


BROKEN = {
    "cut in its compressed data": (FRAMES[0][:-500], "image_truncated"),
    "cut in its header": (FRAMES[0][:200], "image_truncated"),
    "cut after its first marker": (FRAMES[0][:3], "image_truncated"),
    "cut by the last two bytes": (FRAMES[0][:-2], "image_truncated"),
    "a length that spans the next frame": (b"\xff\xd8\xff\xdb\xff\xff" + FRAMES[0][6:], "image_truncated"),
    "a length of nothing": (b"\xff\xd8\xff\xe0\x00\x00" + FRAMES[0][6:], "image_truncated"),
    "an unknown marker": (FRAMES[0][:-200] + b"\xff\x2a" + FRAMES[0][-198:], "image_truncated"),
    "a table that ends in the next frame": (b"\xff\xd8\xff\xdb\x00\x18" + bytes(20), "image_truncated"),
    "a scan without components": (b"\xff\xd8\xff\xda\x00\x02", "image_truncated"),
    "a scan's length that spans the next frame": (b"\xff\xd8\xff\xda\x40\x00" + bytes(20), "image_truncated"),
}


@pytest.mark.parametrize(("broken", "code"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("size", [1, 777, 10**6])
def test_a_broken_frame_affects_only_itself(broken: bytes, code: str, size: int) -> None:
    stream = FRAMES[1] + broken + FRAMES[2] + FRAMES[3] + broken
    assert contents(stream, size) == [FRAMES[1], code, FRAMES[2], FRAMES[3], code]


@given(at=st.integers(2, len(FRAMES[0]) - 1), level=st.integers(0, 255))
def test_a_damaged_byte_never_affects_the_second_next_frame(at: int, level: int) -> None:
    """Usually not even the next one, unless by chance an invalid segment ends on the right byte."""
    damaged = bytearray(FRAMES[0])
    damaged[at] = level
    found = contents(bytes(damaged) + FRAMES[1] + FRAMES[2] + FRAMES[3])
    assert found[-2:] == FRAMES[2:4]


def test_a_frame_over_the_limit_is_dropped_on_arrival() -> None:
    large = FRAMES[0][:-2] + b"\x11" * 400_000 + b"\xff\xd9"
    assert contents(FRAMES[1] + large + FRAMES[2]) == [FRAMES[1], "image_too_large", FRAMES[2]]
    with_comments = FRAMES[0][:2] + (b"\xff\xfe\xff\xff" + b"c" * 65533) * 8 + FRAMES[0][2:]
    assert contents(FRAMES[1] + with_comments + FRAMES[2]) == [FRAMES[1], "image_too_large", FRAMES[2]]


@pytest.mark.parametrize("start", [b"", FRAMES[0][:-2]])
def test_memory_is_bounded_under_an_endless_stream_without_frames(start: bytes) -> None:
    import tracemalloc

    chunk = b"\x55" * 2**16

    def chunks() -> Iterator[bytes]:
        yield start
        for _ in range(200):
            yield chunk

    tracemalloc.start()
    [picture] = from_mjpeg(chunks(), LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(picture.content, InputError)
    assert peak < 1_000_000


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n" + bytes(5000)])
def test_a_stream_without_a_jpeg_is_an_error(stream: bytes) -> None:
    assert contents(stream) == ["not_an_image"]
