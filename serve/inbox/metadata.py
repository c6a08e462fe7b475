"""Remove what a photo's file tells beyond its pixels: place, time, camera, previews, comments, data after the picture.

    plain = without_metadata(data)       # decodes to the same pixels

Only the orientation is kept, in a metadata block of its own. The compressed picture is copied, not encoded again, so a model
that is trained on the file sees what the server saw. `serve.image_files` removes metadata too, but to protect the decoder: it
keeps blocks as they are.
"""

import re
import struct
import zlib

from PIL import Image

from edgeline.serve.image_files import PNG_CHUNK, PNG_SIGNATURE, WEBP_KEPT, open_image
from edgeline.serve.preprocess import EXIF_ORIENTATION, orientation_of

SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""Formats that are kept, by Pillow's names. GIF and BMP are not: no camera writes them."""
JPEG_COLORS = ((0xE0, b"JFIF\0"), (0xEE, b"Adobe"))
"""Application segments that determine the colors: their markers and starts."""
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""The end of a scan's data: neither a stuffed byte, a restart nor padding."""
PNG_COLORS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
WEBP_ALPHA = 0x10
ORIENTATION_FLAG = 0x08


def without_metadata(data: bytes) -> tuple[bytes, str] | None:
    """Copy a valid image file without its metadata.

    Args:
        data: a file that `serve.preprocess` has decoded.

    Returns:
        The file and the suffix of its name; None if its format is not kept, or it is built in a way that is not understood.
    """
    try:
        with open_image(data) as image:
            suffix, orientation = SUFFIXES.get(image.format or ""), orientation_of(image)
    except Exception:  # whatever Pillow raises: a JPEG that lacks only its end is answered, and not kept
        return None
    exif = _exif(orientation)
    try:
        if suffix == ".jpg":
            return _jpeg(data, exif), suffix
        if suffix == ".png":
            return _png(data, exif), suffix
        if suffix == ".webp":
            return _webp(data, exif), suffix
    except (ValueError, struct.error):
        pass
    return None


def _exif(orientation: int) -> bytes:
    """An EXIF block with nothing but the orientation, without its `Exif` header; empty for an upright image."""
    if orientation == 1:
        return b""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _jpeg(data: bytes, exif: bytes) -> bytes:
    parts, at = [data[:2]], 2
    if exif:
        segment = b"Exif\0\0" + exif
        parts.append(b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment)
    while True:
        if data[at : at + 1] != b"\xff":
            raise ValueError("no marker where one is expected")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xD9:
            return b"".join([*parts, b"\xff\xd9"])
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or any(marker == kind and data.startswith(start, at + 4) for kind, start in JPEG_COLORS):
            parts.append(data[at:end])
        if marker == 0xDA:
            found = JPEG_MARKER.search(data, end)
            if found is None:
                raise ValueError("no end marker")
            parts.append(data[end : found.start()])
            end = found.start()
        at = end


def _png(data: bytes, exif: bytes) -> bytes:
    parts, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while True:
        length, kind = PNG_CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if kind in PNG_COLORS:
            parts.append(data[at:end])
        if kind == b"IHDR" and exif:
            parts.append(struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif)))
        if kind == b"IEND":
            return b"".join(parts)
        at = end


def _webp(data: bytes, exif: bytes) -> bytes:
    body, at, extended = [b"WEBP"], 12, False
    (size,) = struct.unpack_from("<I", data, 4)
    while at + 8 <= min(len(data), 8 + size):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if kind == b"VP8X":
            extended = True
            flags = data[at + 8] & (WEBP_ALPHA | 0x02) | (ORIENTATION_FLAG if exif else 0)  # 2: animation
            body.append(data[at : at + 8] + bytes([flags]) + data[at + 9 : end])
        elif kind in WEBP_KEPT:
            body.append(data[at:end])
        at = end
    if exif and extended:
        body.append(b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2))
    joined = b"".join(body)
    return b"RIFF" + struct.pack("<I", len(joined)) + joined
