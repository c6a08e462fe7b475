"""Test vectors for the reference and the ports: files whose metadata, unwritten alpha or missing end marker must not matter."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 90, height: int = 70) -> Image.Image:
    """Soft blotches of color; its sides are no multiples of a JPEG's blocks."""
    blotches = np.random.default_rng(5).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEG, PNG, WEBP, GIF = (encode(picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF"))
BARE_JPEG = JPEG[:2] + JPEG[20:]
"""Without the JFIF segment."""


def bmp(alpha: np.ndarray | int) -> bytes:
    """A 32-bit BMP with a version 5 header and an alpha mask, as Windows programs write them."""
    pixels_HW3 = np.asarray(picture())
    height, width, _ = pixels_HW3.shape
    alpha_HW = np.broadcast_to(np.asarray(alpha, np.uint8), (height, width))
    bgra_HW4 = np.ascontiguousarray(np.dstack([pixels_HW3[..., ::-1], alpha_HW])[::-1])
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, bgra_HW4.nbytes, 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48) + struct.pack("<IIII", 4, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 138 + bgra_HW4.nbytes, 0, 0, 138) + head + bgra_HW4.tobytes()


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG; its checksum is right unless it is given."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)


def png(*chunks: bytes, last: bool = False) -> bytes:
    """The picture with chunks after the header, or before the end."""
    at = len(PNG) - 12 if last else 33
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes, start: bytes = JPEG) -> bytes:
    """The picture with segments in front."""
    return start[:2] + b"".join(segments) + start[2:]


def gif(*extensions: bytes) -> bytes:
    """The picture with extensions after its palette."""
    at = 13 + 3 * 256
    return GIF[:at] + b"".join(extensions) + GIF[at:]


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """The picture with chunks at its end."""
    body = encode(picture(), "WEBP", xmp=b"<x/>")[12:]
    body += b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


NOISE = np.random.default_rng(0).integers(0, 256, 1_500_000, np.uint8).tobytes()
EXIF = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"
"""An EXIF block with orientation 1."""

WITH_METADATA = {
    "F13 PNG with a profile of 1.5 MB": (png(chunk(b"iCCP", b"big\0\0" + zlib.compress(NOISE))), PNG),
    "F13 PNG with a text of 2 MB": (png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000)))), PNG),
    "F13 PNG with that text at its end": (png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))), last=True), PNG),
    "F13 PNG with a text of the wrong checksum": (png(chunk(b"tEXt", b"Comment\0hello", crc=1)), PNG),
    "F13 PNG with a text cut off": (png(chunk(b"tEXt", b"a\0" + bytes(100)), last=True)[:-60], PNG),
    "F13 PNG with a text named transparency": (png(chunk(b"tEXt", b"transparency\0\1")), PNG),
    "F13 PNG with a text named interlace": (png(chunk(b"tEXt", b"interlace\0\1")), PNG),
    "F13 PNG with a text named bbox": (png(chunk(b"tEXt", b"bbox\0\1")), PNG),
    "F13 PNG with short gamma": (png(chunk(b"gAMA", b"\0")), PNG),
    "F13 PNG with short density": (png(chunk(b"pHYs", b"\0")), PNG),
    "F13 PNG with an unknown compression": (png(chunk(b"iCCP", b"p\0\1")), PNG),
    "F13 PNG with a private chunk of the wrong checksum": (png(chunk(b"prVt", b"x", crc=1)), PNG),
    "F13 PNG with damaged EXIF": (png(chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f")), PNG),
    "F13 PNG with EXIF of the wrong checksum": (png(chunk(b"eXIf", EXIF, crc=1)), PNG),
    "F13 PNG with a damaged animation": (png(chunk(b"acTL", b"\0"), chunk(b"fcTL", b"\xff" * 26)), PNG),
    "F13 JPEG with 15 MB of segments": (jpeg(*[segment(0xE5, bytes(65_000))] * 230), JPEG),
    "F13 JPEG with 10 MB of comments": (jpeg(*[segment(0xFE, bytes(65_000))] * 160), JPEG),
    "F13 JPEG with a short JFIF": (jpeg(segment(0xE0, b"JFIF\0\1"), start=BARE_JPEG), BARE_JPEG),
    "F13 JPEG without density": (jpeg(segment(0xE0, b"JFIF\0\1\1\1\0\0\0\0\0\0"), start=BARE_JPEG), BARE_JPEG),
    "F13 JPEG with a short profile": (jpeg(segment(0xE2, b"ICC_PROFILE\0")), JPEG),
    "F13 JPEG with a short Adobe segment": (jpeg(segment(0xEE, b"Adobe")), JPEG),
    "F13 JPEG with a short Photoshop resource": (jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed")), JPEG),
    "F13 JPEG with a damaged index of pictures": (jpeg(segment(0xE2, b"MPF\0" + bytes(range(64)))), JPEG),
    "F13 JPEG with EXIF cut off": (jpeg(segment(0xE1, b"Exif\0\0" + EXIF[:12]), start=BARE_JPEG), BARE_JPEG),
    "F13 JPEG with an empty segment": (jpeg(b"\xff\xe5\0\0"), JPEG),
    "F13 GIF with 1 MB of comments": (gif(b"!\xfe" + (b"\xff" + bytes(255)) * 4000 + b"\0"), GIF),
    "F13 GIF with an empty extension": (gif(b"!\xff\x0bNETSCAPE2.0\0", b"!\xf9\0"), GIF),
    "F13 WebP with EXIF cut off": (webp((b"EXIF", EXIF))[:-9], WEBP),
    "F13 WebP with a chunk of 2 GB": (webp()[:-8] + struct.pack("<I", 2**31) + b"<x/>", WEBP),
    "F13 WebP with damaged EXIF": (webp((b"EXIF", b"II*\0\xff\xff\xff\x7f")), WEBP),
}
"""By name: a file with metadata that is large or damaged, and one without it that has the same pixels."""

OPAQUE_BMP = {"F12 BMP, all alpha 0": (bmp(0), PNG), "F12 BMP, all alpha 255": (bmp(255), PNG)}
"""By name: a BMP, and another file with the same pixels."""


def without_end(**options: Any) -> tuple[bytes, bytes]:
    """A JPEG that lacks its end marker, and the complete one."""
    whole = encode(picture(), "JPEG", **options)
    return whole[:-2], whole


WITHOUT_END = {
    "G3 JPEG": without_end(),
    "G3 JPEG in full color": without_end(subsampling=0, quality=100),
    "G3 JPEG with own tables": without_end(optimize=True),
    "G3 JPEG with a restart in each row": without_end(restart_marker_rows=1),
    "G3 JPEG with restarts in between": without_end(restart_marker_blocks=7),
}
"""By name: a JPEG that lacks only its end marker, and the complete one."""
