import io
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgeline.pipeline.data.validation import DECODED, STRIP_PIXELS, ValidationResult, hash_files, pixel_digest, validate_images
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.sources.discovery import Source, find_source
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.preprocess import Limits
from tests.support.image_files import OPAQUE_BMP, WITH_METADATA, WITHOUT_END

LIMITS = Limits(max_bytes=2**20)


def photo(path: Path, number: int = 0, **options: object) -> Path:
    """Write a small image that is different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("RGB", (12, 9), random.Random(number).randbytes(12 * 9 * 3))
    image.save(path, options.pop("format", "PNG"), **options)
    return path


def encoded(format: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(1).randbytes(3 * size[0] * size[1])).save(stream, format)
    return stream.getvalue()


@pytest.fixture(name="data")
def two_class_folders(tmp_path: Path) -> Path:
    photo(tmp_path / "data" / "cat" / "1.png", 1)
    photo(tmp_path / "data" / "dog" / "1.png", 2)
    return tmp_path / "data"


def validated(data: Path, limits: Limits = LIMITS) -> ValidationResult:
    source = find_source(str(data), data)
    return validate_images(source, hash_files(paths(source), limits), limits, ContentCache(data.parent / "images.sqlite"))


def paths(source: Source) -> list[str]:
    return [source.path(file) for file in source.files]


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def bomb() -> bytes:
    """A PNG of a few bytes whose header declares 900 million pixels."""
    chunks = ((b"IHDR", (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])), (b"IDAT", zlib.compress(b"")))
    parts = [len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


REJECTED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "zero bytes": ("a.jpg", write(b""), "image_empty"),
    "half a JPEG": ("a.jpg", write(encoded()[:900]), "image_truncated"),
    "a JPEG without its end": ("a.jpg", write(encoded()[:-40]), "image_truncated"),
    "half a PNG": ("a.png", write(encoded("PNG")[:900]), "image_truncated"),
    "a JPEG cut short without an extension": ("photo", write(encoded()[:900]), "image_truncated"),
    "a PNG with a flipped bit": ("a.png", write(encoded("PNG")[:500] + b"\x00\xff" + encoded("PNG")[502:]), "image_invalid"),
    "text called JPEG": ("a.jpg", write(b"hello"), "not_an_image"),
    "HTML called PNG": ("a.png", write(b"<html><body>404</body></html>"), "not_an_image"),
    "an iPhone's HEIC": ("a.HEIC", write(b"\x00\x00\x00\x18ftypheic"), "not_an_image"),
    "a TIFF": ("a.tiff", write(encoded("TIFF")), "not_an_image"),
    "an empty TIFF": ("a.tif", write(b""), "image_empty"),
    "a pixel bomb": ("a.png", write(bomb()), "image_too_large"),
    "more bytes than allowed": ("a.bmp", write(bytes(LIMITS.max_bytes + 1)), "image_too_large"),
    "FIFO": ("a.jpg", os.mkfifo, "not_a_regular_file"),
    "a link to itself": ("a.jpg", lambda path: path.symlink_to(path.name), "unreadable"),
    "a link that leaves": ("a.jpg", lambda path: path.symlink_to("/etc/hostname"), "path_escapes_root"),
}


SAME_PIXELS = WITH_METADATA | OPAQUE_BMP | WITHOUT_END


@pytest.mark.filterwarnings("ignore:.*(EXIF|MPO|Truncated).*:UserWarning")
def test_what_is_no_pixel_makes_no_difference_to_a_data_set(data: Path) -> None:
    """F12, F13, G3: files whose digest of the pixels is that of the plain picture; those without an end marker are marked."""
    for index, files in enumerate(SAME_PIXELS.values()):
        for kind, content in zip(("cat", "dog"), files, strict=True):
            (data / kind / f"{index:02d}.jpg").write_bytes(content)
    found = validated(data, Limits())
    assert found.rejected == ()
    pixels = {image.name: image.content.pixels for image in found.images}
    assert [pixels[f"cat/{index:02d}.jpg"] == pixels[f"dog/{index:02d}.jpg"] for index in range(len(SAME_PIXELS))] == (
        [True] * len(SAME_PIXELS)
    )
    without_end = [index for index, name in enumerate(SAME_PIXELS) if name in WITHOUT_END]
    assert [image.name for image in found.images if image.content.incomplete_end] == [f"cat/{i:02d}.jpg" for i in without_end]


@pytest.mark.parametrize(("name", "make", "code"), REJECTED.values(), ids=REJECTED)
def test_an_unusable_image_file_is_rejected_with_its_code(
    data: Path, name: str, make: Callable[[Path], object], code: str
) -> None:
    make(data / "cat" / name)
    found = validated(data)
    assert [(file.name, file.code) for file in found.rejected] == [(f"cat/{name}", code)]
    assert (len(found.images), found.ignored, found.found) == (2, (), 3)


IGNORED = {
    "a text": ("notes.txt", b"hello"),
    "a table without an extension": ("labels", b"1,2"),
    "an empty text": ("empty.md", b""),
    "a video over the limit": ("clip.mp4", bytes(LIMITS.max_bytes + 1)),
}


@pytest.mark.parametrize(("name", "content"), IGNORED.values(), ids=IGNORED)
def test_a_file_that_is_not_an_image_by_name_or_content_is_ignored(data: Path, name: str, content: bytes) -> None:
    (data / "cat" / name).write_bytes(content)
    found = validated(data)
    assert [(file.name, file.code) for file in found.ignored] == [(f"cat/{name}", "ignored")]
    assert found.rejected == ()


ACCEPTED = {
    "PNG called PNG": ("a.png", "PNG", False),
    "PNG called JPG": ("a.jpg", "PNG", True),
    "JPEG called JPEG": ("a.JPEG", "JPEG", False),
    "JPEG called PNG": ("a.png", "JPEG", True),
    "WebP": ("a.webp", "WEBP", False),
    "GIF": ("a.gif", "GIF", False),
    "BMP called DIB": ("a.dib", "BMP", False),
    "JPEG called TIFF": ("a.tif", "JPEG", True),
    "PNG called text": ("a.txt", "PNG", True),
    "PNG without an extension": ("a", "PNG", False),
}


@pytest.mark.parametrize(("name", "format", "wrong"), ACCEPTED.values(), ids=ACCEPTED)
def test_images_are_recognized_by_content_not_extension(data: Path, name: str, format: str, wrong: bool) -> None:
    photo(data / "cat" / name, 3, format=format)
    [image] = [image for image in validated(data).images if image.name == f"cat/{name}"]
    assert (image.content.format, image.wrong_extension) == (format, wrong)
    assert (image.content.width, image.content.height) == (12, 9)


def test_pixels_are_the_same_in_every_lossless_format_and_upright(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name, format in (("a.png", "PNG"), ("b.bmp", "BMP"), ("c.webp", "WEBP")):
        photo(root / "cat" / name, 1, format=format, lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "cat" / "a.png").transpose(Image.Transpose.ROTATE_90).save(root / "cat" / "d.png", exif=exif)
    photo(root / "dog" / "a.png", 2)
    assert len({image.content.pixels for image in validated(root).images if image.file.label == "cat"}) == 1
    assert len({image.sha256 for image in validated(root).images}) == 5


def test_the_pixel_digest_depends_on_the_shape() -> None:
    assert pixel_digest(Image.new("RGB", (2, 8))) != pixel_digest(Image.new("RGB", (4, 4)))


def test_a_large_image_is_hashed_completely() -> None:
    image = Image.new("RGB", (1024, 2 * STRIP_PIXELS // 1024 + 5))
    plain = pixel_digest(image)
    image.putpixel((1023, image.height - 1), (0, 0, 1))
    assert pixel_digest(image) != plain


def test_after_one_more_photo_one_photo_is_decoded(data: Path) -> None:
    assert validated(data).decoded == 2
    photo(data / "dog" / "2.png", 3)
    assert validated(data).decoded == 1
    assert validated(data).decoded == 0


def test_copies_and_new_names_are_not_decoded_again(data: Path) -> None:
    validated(data)
    (data / "dog" / "copy.png").write_bytes((data / "dog" / "1.png").read_bytes())
    (data / "cat" / "1.png").rename(data / "cat" / "renamed.png")
    assert validated(data).decoded == 0


def test_other_limits_validate_again(data: Path) -> None:
    assert validated(data).decoded == 2
    small = validated(data, Limits(max_pixels=50))
    assert (small.decoded, [file.code for file in small.rejected]) == (2, ["image_too_large"] * 2)


def test_rejections_are_cached_with_their_reason(data: Path) -> None:
    (data / "cat" / "a.jpg").write_bytes(encoded()[:900])
    first, second = validated(data), validated(data)
    assert (first.decoded, second.decoded) == (3, 0)
    assert first.rejected == second.rejected
    assert "truncated" in first.rejected[0].message


def test_more_files_than_a_shard_are_all_validated(data: Path) -> None:
    for number in range(DECODED + 3):
        photo(data / "cat" / f"{number}.png", number + 10)
    assert len(validated(data).images) == DECODED + 4  # the first photo is overwritten
    assert validated(data).decoded == 0


def test_a_file_that_changes_between_hashing_and_reading_stops_the_run(data: Path) -> None:
    source = find_source(str(data), data)
    hashes = hash_files(paths(source), LIMITS)
    photo(data / "dog" / "1.png", 99)
    with pytest.raises(DataError, match=r"dog/1\.png has changed") as caught:
        validate_images(source, hashes, LIMITS, ContentCache(data.parent / "images.sqlite"))
    assert caught.value.code == "changed_during_read"


def test_a_file_that_is_deleted_between_hashing_and_reading_stops_the_run(data: Path) -> None:
    source = find_source(str(data), data)
    hashes = hash_files(paths(source), LIMITS)
    (data / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match="has changed"):
        validate_images(source, hashes, LIMITS, ContentCache(data.parent / "images.sqlite"))


def test_a_file_that_is_being_written_again_is_read_twice(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that sees half of the file once stands in for the writer, which a test cannot time."""
    from edgeline.pipeline.data import validation

    whole, reads = validation.open_regular, []

    def half_at_first(path: str) -> io.BufferedReader:
        reads.append(path)
        with whole(path) as file:
            content = file.read()
        return io.BufferedReader(io.BytesIO(content[:20] if reads.count(path) == 1 else content))  # type: ignore[arg-type]

    source = find_source(str(data), data)
    hashes = hash_files(paths(source), LIMITS)
    monkeypatch.setattr(validation, "open_regular", half_at_first)
    found = validate_images(source, hashes, LIMITS, ContentCache(data.parent / "images.sqlite"))
    assert (len(found.images), len(reads)) == (2, 4)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/", "/proc/self/mem", "absent"])
def test_only_regular_files_are_hashed(path: str) -> None:
    [error] = hash_files([path], LIMITS)
    assert isinstance(error, ImageError)
    assert error.code in ("not_a_regular_file", "unreadable")
