"""What is removed from photos before they are kept, and what is not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from edgeline.serve.inbox.metadata import without_metadata
from edgeline.serve.preprocess import decode_image
from tests.support.image_files import GIF, encode, picture

SECRET = b"SECRET-52.5200N"


def secrets(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = SECRET.decode()
    exif.get_ifd(0x8825)[1] = "N"
    return exif


def png(mode: str, orientation: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET.decode())
    text.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    return encode(picture().convert(mode), "PNG", exif=secrets(orientation), pnginfo=text, dpi=(72, 72))


def photos(orientation: int) -> dict[str, bytes]:
    exif, comment = secrets(orientation), SECRET.decode()
    transparent = picture().convert("RGBA")
    transparent.putalpha(120)
    icc = b"\0" * 40 + SECRET
    return {
        "JPEG": encode(picture(), "JPEG", exif=exif, comment=comment, xmp=SECRET, icc_profile=icc),
        "progressive JPEG": encode(picture(), "JPEG", exif=exif, progressive=True),
        "JPEG with restarts": encode(picture(), "JPEG", exif=exif, restart_marker_blocks=2),
        "CMYK JPEG": encode(picture().convert("CMYK"), "JPEG", exif=exif),
        "gray JPEG": encode(picture().convert("L"), "JPEG", exif=exif),
        "PNG": png("RGB", orientation),
        "palette PNG": png("P", orientation),
        "transparent PNG": encode(transparent, "PNG", exif=exif),
        "WebP": encode(picture(), "WEBP", exif=exif, xmp=SECRET, icc_profile=icc),
        "transparent lossless WebP": encode(transparent, "WEBP", exif=exif, lossless=True),
    }


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_the_pixels_and_the_orientation_stay_and_everything_else_goes(orientation: int) -> None:
    for name, photo in photos(orientation).items():
        assert SECRET in photo or name.startswith("transparent"), name
        found = without_metadata(photo + SECRET)  # phones append videos and depth maps
        assert found is not None, name
        plain, suffix = found
        assert suffix == {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp"}[name.removesuffix(" with restarts").split()[-1]]
        assert SECRET not in plain, name
        assert np.array_equal(np.asarray(decode_image(plain)), np.asarray(decode_image(photo))), name
        with Image.open(io.BytesIO(plain)) as image:
            assert dict(image.getexif()) == ({} if orientation == 1 else {0x0112: orientation}), name
            assert "icc_profile" not in image.info, name


def test_compressed_texts_of_a_png_go_too() -> None:
    data = encode(picture(), "PNG")
    body = b"zTXtComment\0\0" + zlib.compress(SECRET)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    found = without_metadata(data[:33] + chunk + data[33:])
    assert found is not None
    assert b"zTXt" not in found[0]


def test_what_is_not_understood_is_not_kept() -> None:
    whole = encode(picture(), "JPEG")
    for photo in (GIF, encode(picture(), "BMP"), whole[:-2], whole[:200], b"no image", b"", b"\xff\xd8\xff" * 9):
        assert without_metadata(photo) is None
