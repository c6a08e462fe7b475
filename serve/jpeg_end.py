"""JPEGs without an end marker, as some cameras write them, or because their last bytes are lost.

Their pixels may be complete, but the decoder's result does not show it: libjpeg silently replaces missing data. It decodes
zeros until the end of the first block that lacks a bit, and leaves all later blocks empty. Therefore the picture is decoded
again with the end marker added and a height that is two rows of blocks larger. The first block of these rows is decoded, and is
not empty, only if no earlier block lacked a bit. A flat gray picture may be empty there too and is rejected.

With restart markers, only the data after the last of them is decoded, as a picture of its own.

Only JPEGs of one scan qualify. In a progressive JPEG, nothing but the end marker shows that no scan is missing.
"""

import io
import re
import struct
from dataclasses import dataclass

from PIL import Image

END = b"\xff\xd9"
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
MAX_SIDE = 65500
"""Of a JPEG that libjpeg decodes."""


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the headers of a JPEG with one scan declare."""

    frame: int
    """Offset of the frame header."""
    quantization: list[tuple[int, int]]
    """Offset and length of the values of each quantization table."""
    restarts: int
    """Offset of the restart interval, or 0."""
    data: int
    """Offset of the compressed data."""


def lacks_end_marker(data: bytes) -> bool:
    """Whether the bytes are a JPEG of one scan without an end marker after its data."""
    scan = _read_headers(data)
    return scan is not None and data.find(END, scan.data) < 0


def with_end_marker(data: bytes) -> bytes | None:
    """Return a JPEG that lacks only its end marker, or a part of it, with that marker.

    Returns:
        None if a bit of its pixels is missing, or this cannot be decided.
    """
    scan = _read_headers(data)
    if scan is None or data.find(END, scan.data) >= 0:
        return None
    ended = data + (END[1:] if data.endswith(END[:1]) else END)
    try:
        probe = _probe(ended, scan)
        return ended if probe is not None and _is_filled(*probe) else None
    except Exception:  # headers without sense; Pillow's decoders raise many kinds of errors
        return None


def _read_headers(data: bytes) -> _Scan | None:
    frame = restarts = 0
    quantization = []
    at = 2
    while data.startswith(b"\xff\xd8\xff") and at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0xC0, 0xC1):
            frame = at
        elif marker == 0xDB and length % 65 == 2:
            quantization += [(table, 64) for table in range(at + 5, at + 2 + length, 65)]
        elif marker == 0xDD:
            restarts = at + 4
        elif marker == 0xDA:
            has_all_components = data[at + 4 : at + 5] == data[frame + 9 : frame + 10]
            return _Scan(frame, quantization, restarts, at + 2 + length) if frame and has_all_components else None
        at += 2 + length
    return None


def _probe(ended: bytes, scan: _Scan) -> tuple[bytes, int, int, int] | None:
    """A JPEG with two rows of blocks too many; their size in pixels, and how many rows of pixels are above them."""
    height, width, components = struct.unpack_from(">HHB", ended, scan.frame + 5)
    factors = [ended[scan.frame + 11 + 3 * component] for component in range(components)]
    across, down = (8, 8) if components == 1 else (8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors))
    header, compressed = bytearray(ended[: scan.data]), memoryview(ended)[scan.data :]
    interval = int.from_bytes(header[scan.restarts : scan.restarts + 2]) if scan.restarts else 0
    if interval:
        blocks = -(-width // across) * -(-height // down)
        markers = [match.end() for match in RESTART.finditer(compressed)]
        if len(markers) != (blocks - 1) // interval:
            return None
        header[scan.restarts : scan.restarts + 2] = b"\0\0"
        compressed = compressed[markers[-1] :] if markers else compressed
        width, height = (blocks - len(markers) * interval) * across, down
    above = -(-height // down) * down
    if width > MAX_SIDE or above + 2 * down > MAX_SIDE:
        return None
    struct.pack_into(">HH", header, scan.frame + 5, above + 2 * down, width)
    for start, length in scan.quantization:  # so that any coefficient shows
        header[start : start + length] = b"\xff" * length
    return b"".join((header, compressed)), across, down, above


def _is_filled(jpeg: bytes, across: int, down: int, above: int) -> bool:
    """Whether the first block of the row differs from the one below, which is empty; not at the edges, where colors blend."""
    image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
    first, empty = (image.crop((2, top + 2, across - 2, top + down - 2)).tobytes() for top in (above, above + down))
    return first != empty
