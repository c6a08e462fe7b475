"""Open image files so that only what determines the pixels matters.

Pillow also parses profiles, texts and previews, and rejects an image if one of them is damaged or very large. In a PNG, a text
under the name of one of Pillow's own fields, such as `transparency` or `interlace`, even changes how pixels are decoded.
Therefore metadata is removed first, except for the orientation. At most 1 MiB of it is inflated, and none of Pillow's limits,
which apply to the whole process, is changed.

- PNG: always. Of an animation the default image is left, which every decoder shows first.
- JPEG, GIF and WebP: only if Pillow cannot open the file, because in these formats valid metadata changes nothing else.
"""

import io
import struct
import zlib

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Accepted formats. TIFF, PSD, EPS and others are rejected: each is one more parser to attack, and no camera writes them."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = struct.Struct(">I4s")
ANCILLARY = 0x20
"""Bit of the first letter of a PNG chunk's type: a decoder may skip the chunk."""
RAW_EXIF = b"zTXtRaw profile type exif\0\0"
PNG_ORIENTATION = (b"eXIf", b"iTXtXML:com.adobe.xmp\0\0", b"tEXtRaw profile type exif\0", RAW_EXIF)
"""Starts of PNG chunks that can contain the orientation: EXIF, uncompressed XMP, and EXIF as ImageMagick used to write it."""
PILLOW_MAX_TEXT = 2**20
"""Bytes of an inflated text from which Pillow rejects a PNG."""

HEIC, HEIC_BRANDS = "a HEIC image", ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1")
OTHER_KINDS = {
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"8BPS": "a Photoshop image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"<svg": "an SVG image",
    b"<?xml": "XML",
    b"<!doctype html": "a web page",
    b"<!DOCTYPE html": "a web page",
    b"<html": "a web page",
}
"""What other files start with."""

JPEG_KEPT = ((b"JFIF\0", 16), (b"Adobe", 14), (b"Exif\0\0", 8), (b"http://ns.adobe.com/xap/1.0/\0", 2))
"""Starts and least lengths of the application segments that determine the colors or the orientation."""
WEBP_KEPT = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")


def open_image(data: bytes) -> Image.Image:
    """Open an image file without decoding it.

    Raises:
        Exception: whatever Pillow raises for bytes that are no image in one of `FORMATS`, or a damaged one.
    """
    if data.startswith(PNG_SIGNATURE):
        return Image.open(io.BytesIO(_png_without_metadata(data)), formats=FORMATS)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        if data.startswith(b"\xff\xd8\xff"):
            plain = _jpeg_without_metadata(data)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            plain = _gif_without_metadata(data)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            plain = _webp_without_metadata(data)
        else:
            raise
        return Image.open(io.BytesIO(plain), formats=FORMATS)


def kind_of(data: bytes) -> str | None:
    """What bytes are that are not an image in one of `FORMATS`, for messages; None if unknown."""
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("latin-1")
        return {"avif": "an AVIF image", "avis": "an AVIF image"}.get(brand, HEIC if brand in HEIC_BRANDS else "a video")
    first = data[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    return next((kind for start, kind in OTHER_KINDS.items() if first.startswith(start)), None)


def _png_without_metadata(data: bytes) -> bytes:
    """Keep the critical chunks, the transparency and the orientation."""
    view, kept, start, at = memoryview(data), [], 0, 8
    texts: set[bytes] = set()
    while at + PNG_CHUNK.size <= len(data):
        length, kind = PNG_CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if kind[0] & ANCILLARY and kind != b"tRNS":
            if kind not in texts and data.startswith(PNG_ORIENTATION, at + 4) and _is_intact(view[at:end]):
                texts.add(kind)
            else:
                kept.append(view[start:at])
                start = end
        if kind == b"IEND":
            break
        at = end
    return b"".join([*kept, view[start:]]) if kept else data


def _is_intact(chunk: memoryview) -> bool:
    """Whether a chunk's checksum is right, and it is no text that Pillow would reject for its size."""
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
        return False
    if bytes(chunk[4:8]) != b"zTXt":
        return True
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(chunk[4 + len(RAW_EXIF) : -4], PILLOW_MAX_TEXT)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail


def _jpeg_without_metadata(data: bytes) -> bytes:
    """Remove comments and all application segments but `JPEG_KEPT`."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and (marker := data[at + 1]) != 0xDA:
        if marker == 0xFF:  # padding
            at += 1
            continue
        length = max(2, int.from_bytes(data[at + 2 : at + 4]))
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or any(
            data.startswith(start, at + 4) and length >= least for start, least in JPEG_KEPT
        ):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])


def _gif_without_metadata(data: bytes) -> bytes:
    """Remove the extensions before the first frame, except for the one with its transparency."""
    palette = 3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0
    at = 13 + palette
    kept = [data[:at]]
    while data[at : at + 1] == b"!":
        start = at
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        if data[start + 1 : start + 3] == b"\xf9\x04":
            kept.append(data[start:at])
    return b"".join([*kept, data[at:]])


def _webp_without_metadata(data: bytes) -> bytes:
    """Keep the chunks of the picture, and EXIF if it is complete."""
    kept, at = [b"WEBP"], 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if kind in WEBP_KEPT or (kind == b"EXIF" and end <= len(data)):
            kept.append(data[at:end])
        at = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
