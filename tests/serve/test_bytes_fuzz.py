"""Mutants of valid bodies, tensors and image files raise InputError and ImageError only."""

import gzip
import io
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable

import pytest
from PIL import Image

from edgeline.serve.errors import ImageError, InputError
from edgeline.serve.http.open_inference.decode import Signature, decode
from edgeline.serve.http.open_inference.encode import decompress
from edgeline.serve.http.open_inference.tensors import Spec
from edgeline.serve.http.request_body import boundary_of, files_in
from edgeline.serve.preprocess import Limits, PreprocessSpec, decode_image, preprocess
from tests.support import image_files

COUNTS = [pytest.param(400, id="400"), pytest.param(100_000, id="100000", marks=pytest.mark.nightly)]
SPEC = PreprocessSpec(height=12, width=16)
LIMITS = Limits(max_bytes=2**20, max_pixels=10**6)
TOKENS = [
    b"\r\n",
    b"--",
    b"--B",
    b"--B--",
    b"\r\n--B\r\n",
    b"\r\n--B--\r\n",
    b"filename",
    b"filename*=UTF-8''a",
    b'"',
    b";",
    b":",
    b"\0",
]
TOKENS += [
    b"Content-Disposition: form-data; ",
    b"Content-Transfer-Encoding: base64\r\n",
    b"\xff",
    b"{",
    b"[",
    b"1e999",
    b"NaN",
    b"-",
]
TOKENS += [b'"data"', b'"shape"', b'"binary_data_size"', b"\xff" * 8, b"9" * 300, b"\\ud800", b"[" * 200, b"null", b"", b"\n"]


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Some places replaced by other bytes, tokens or nothing; perhaps the end missing or doubled."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        new = chance.choice([chance.randbytes(chance.randrange(4)), chance.choice(TOKENS), bytes(changed[at : at + 40])])
        changed[at : at + chance.choice([0, 1, len(new), 30])] = new
        if chance.random() < 0.3 and changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed[: chance.randrange(len(changed) + 1)] if chance.random() < 0.2 else changed)


def outcomes(call: Callable[[bytes], object], inputs: list[bytes], allowed: type[InputError] = InputError) -> Counter[str]:
    """The number of errors by code, and of results under ""; other exceptions propagate."""
    found = Counter[str]()
    for data in inputs:
        try:
            call(data)
            found[""] += 1
        except allowed as error:
            found[error.code if str(error).isprintable() else "not in one line"] += 1
    return found


FORM = b"".join(
    b'--B\r\nContent-Disposition: form-data; name="f"; filename="%d.jpg"\r\nContent-Type: image/jpeg\r\n\r\n%b\r\n'
    % (n, bytes(40))
    for n in range(3)
)
FORM += b'--B\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
FORM += b"--B\r\nContent-Disposition: form-data; name=f; filename*=utf-8''a.jpg\r\n\r\n" + bytes(40) + b"\r\n"


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutant_of_a_form_does_more_than_fail_it(count: int) -> None:
    chance = random.Random(count)
    found = outcomes(lambda body: files_in(body, b"B"), [damaged(chance, FORM + b"--B--\r\n") for _ in range(count)])
    assert {"", "multipart_invalid"} == found.keys()


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutant_of_a_content_type_does_more_than_fail_it(count: int) -> None:
    from starlette.datastructures import Headers

    chance = random.Random(count)
    good = b'multipart/form-data; charset="utf-8"; boundary="B"'
    found = outcomes(
        lambda data: boundary_of(Headers({"content-type": data.decode("latin-1")})),
        [damaged(chance, good) for _ in range(count)],
    )
    assert {"", "multipart_invalid", "media_type_not_supported"} >= found.keys()


OUTPUTS = (Spec("probabilities", "FP32", (-1, 4)),)
IMAGES = Signature((Spec("image", "BYTES", (-1, 1), is_text=False),), OUTPUTS, 64)
PIXELS = Signature((Spec("image", "UINT8", (-1, 2, 3, 3)),), OUTPUTS, 64)


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutant_of_a_v2_request_does_more_than_fail_it(count: int) -> None:
    chance = random.Random(count)
    tensor = {"name": "image", "shape": [1, 2, 3, 3], "datatype": "UINT8"}
    in_json = json.dumps({"id": "1", "inputs": [tensor | {"data": list(range(18))}], "parameters": {"timeout": 5}}).encode()
    described = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}
    framed = json.dumps({"inputs": [described], "outputs": [{"name": "probabilities"}]}).encode()
    blob = struct.pack("<I", 5) + b"image"

    def ask(data: bytes) -> None:
        kind = data[:1] < b"\x80"
        packed = chance.random() < 0.1
        body = gzip.compress(data[1:]) if packed else data[1:]
        body = decompress(body[: len(body) - (data[0] % 4)], "gzip", 5_000) if packed else body
        length = chance.choice([None, str(len(framed)), str(len(framed)), "0", str(len(body)), str(len(framed) - 1)])
        decode(body, length, PIXELS if kind else IMAGES)

    mutants = [chance.randbytes(1) + damaged(chance, chance.choice([in_json, framed + blob])) for _ in range(count)]
    assert {"", "json_invalid", "tensor_invalid"} <= outcomes(ask, mutants).keys()


def photo(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.radial_gradient("L").resize((60, 45))
    Image.merge("RGB", (image, image.rotate(90), image.rotate(180))).save(file, kind, **options)
    return file.getvalue()


FILES = {
    "JPEG": photo("JPEG"),
    "progressive JPEG": photo(
        "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "PNG": photo("PNG"),
    "WebP": photo("WEBP"),
    "lossless WebP": photo("WEBP", lossless=True),
    "GIF": photo("GIF"),
    "BMP": photo("BMP"),
    "BMP with alpha": image_files.bmp(0),
    "JPEG without its end": photo("JPEG")[:-2],
    "JPEG with restarts, without its end": photo("JPEG", restart_marker_blocks=3)[:-2],
}


def pixels(inputs: list[bytes]) -> Counter[str]:
    def shape_of(data: bytes) -> None:
        assert preprocess(data, SPEC, LIMITS).shape == (12, 16, 3)

    found = outcomes(shape_of, inputs, ImageError)
    assert "not in one line" not in found
    return found


@pytest.mark.parametrize("kind", FILES)
def test_no_image_that_is_cut_off_at_any_hundredth_does_more_than_fail(kind: str) -> None:
    data = FILES[kind]
    found = pixels([data[: len(data) * part // 100] for part in range(100)])
    assert found[""] <= 1  # the last hundredth of some is no picture any more
    assert found["image_truncated"] + found["image_invalid"] + found["not_an_image"] + found["image_empty"] >= 99


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("count", [pytest.param(300, id="300"), pytest.param(20_000, id="20000", marks=pytest.mark.nightly)])
def test_no_mutant_of_an_image_does_more_than_fail(kind: str, count: int) -> None:
    chance = random.Random(count)
    found = pixels([damaged(chance, FILES[kind]) for _ in range(count)])
    assert len(found) > 1


EXIF = b"II*\0\x08\0\0\0\x01\0\x98\x82\x02\0\x04\0\0\0you\0\0\0\0\0"
BODIES = [
    EXIF,
    b"Exif\0\0" + EXIF,
    b"JFIF\0\1\1\1\0\x48\0\x48\0\0",
    b"http://ns.adobe.com/xap/1.0/\0<x/>",
    b"ICC_PROFILE\0\1\1" + bytes(30),
]
BODIES += [b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16), b"MPF\0" + EXIF, b"XML:com.adobe.xmp\0\0\0\0\0<x/>"]
BODIES += [
    b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 6\n457869660000"),
    b"sRGB\0\0" + zlib.compress(bytes(200)),
    bytes(8),
]
"""Metadata of all formats, without orientation."""


def with_metadata(kind: str, chance: random.Random, body: bytes) -> tuple[bytes, bytes]:
    """A file with damaged metadata, and the one without."""
    if kind == "JPEG":
        marker = chance.choice([*range(0xE0, 0xEE), 0xEF, 0xFE])
        return image_files.jpeg(image_files.segment(marker, body), start=image_files.BARE_JPEG), image_files.BARE_JPEG
    if kind == "GIF":
        blocks = b"".join(bytes([len(body[at : at + 40])]) + body[at : at + 40] for at in range(0, len(body), 40)) + b"\0"
        return image_files.gif(b"!" + chance.choice([b"\xfe", b"\xff", b"\1", b"\0"]) + blocks), image_files.GIF
    if kind == "WebP":
        padded = body + bytes(len(body) % 2)
        return image_files.webp((chance.choice([b"EXIF", b"XMP ", b"ICCP", b"abcd"]), padded)), image_files.WEBP
    name = chance.choice(
        [b"eXIf", b"iTXt", b"zTXt", b"tEXt", b"iCCP", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"acTL", b"fcTL", b"abCd"]
    )
    chunk = image_files.chunk(name, body, crc=chance.choice([None, 0]))
    return image_files.png(chunk, last=chance.random() < 0.3), image_files.PNG


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "GIF"])
@pytest.mark.parametrize("count", [pytest.param(300, id="300"), pytest.param(20_000, id="20000", marks=pytest.mark.nightly)])
def test_no_mutant_of_metadata_changes_a_pixel(kind: str, count: int) -> None:
    """F13."""
    chance = random.Random(count)
    for _ in range(count):
        data, plain = with_metadata(kind, chance, damaged(chance, chance.choice(BODIES)))
        assert decode_image(data).tobytes() == decode_image(plain).tobytes(), data.hex()


@pytest.mark.parametrize("count", [pytest.param(30, id="30"), pytest.param(1000, id="1000", marks=pytest.mark.nightly)])
def test_a_jpeg_that_lost_its_end_is_complete_or_rejected(count: int) -> None:
    """G3: any size, sampling, quality and number of restarts; cut anywhere in its last bytes."""
    chance = random.Random(count)
    decoded: list[bytes] = []
    for _ in range(count):
        image = image_files.picture(chance.randrange(1, 60), chance.randrange(1, 60))
        image = image.convert(chance.choice(["RGB", "L", "CMYK"]))
        options = {"quality": chance.randrange(1, 101), "optimize": chance.random() < 0.3, "progressive": chance.random() < 0.1}
        options |= {"subsampling": chance.randrange(3), "restart_marker_blocks": chance.choice([0, 0, 1, 2, 3, 7, 20])}
        whole = image_files.encode(image, "JPEG", **options)
        cut = [whole[:-missing] for missing in range(1, min(40, len(whole)))]
        found = outcomes(lambda data: decoded.append(decode_image(data).tobytes()), cut, ImageError)
        assert found.keys() <= {"", "image_truncated", "image_invalid", "not_an_image"}
        assert set(decoded[len(decoded) - found[""] :]) <= {decode_image(whole).tobytes()}
    assert len(decoded) >= count


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\0\0\0,"
        + struct.pack("<HHHH", 0, 0, width, height)
        + b"\0\x02\x02L\x01\0;"
    )


BOMBS = {
    "a PNG of a huge header": (png(2**31 - 1, 2**31 - 1, b""), "image_too_large"),
    "a PNG just over the pixels": (png(1001, 1000, b""), "image_too_large"),
    "a PNG of too many rows": (png(10, 10, bytes(10_000_000)), ""),
    "a PNG of too few rows": (png(900, 900, b""), "image_truncated"),
    "a PNG without width": (png(0, 10, b""), "not_an_image"),
    "a GIF of a huge screen": (gif(65535, 65535), "image_too_large"),
    "a GIF of a huge frame": (
        gif(60, 60).replace(struct.pack("<HHHH", 0, 0, 60, 60), b"\0\0\0\0\xff\xff\xff\xff"),
        "image_too_large",
    ),
}


@pytest.mark.parametrize(("data", "code"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_rejected_or_harmless(data: bytes, code: str) -> None:
    assert set(pixels([data])) == {code}
