"""The files of a multipart body, and which bodies are parsed as one."""

import tracemalloc

import pytest
from starlette.datastructures import Headers

from edgeline.serve.errors import InputError
from edgeline.serve.http.request_body import boundary_of, files_in

IMAGE = bytes(range(256)) * 10


def part(body: bytes = IMAGE, disposition: bytes = b'form-data; name="file"; filename="a.jpg"', more: bytes = b"") -> bytes:
    return b"--B\r\nContent-Disposition: " + disposition + b"\r\n" + more + b"\r\n" + body + b"\r\n"


END = b"--B--\r\n"
FIELD = part(b"3", b'form-data; name="note"', b"Content-Type: text/plain; charset=utf-8\r\n")
READ = {
    "one file": part() + END,
    "with a content type": part(more=b"Content-Type: image/jpeg\r\n") + END,
    "without a last line break": part() + b"--B--",
    "with an epilogue": part() + END + b"epilogue",
    "a name with a path": part(disposition=b'form-data; name="f"; filename="../../etc/passwd"') + END,
    "binary transfer": part(more=b"Content-Transfer-Encoding: binary\r\n") + END,
    "G4, a field before the file": FIELD + part() + END,
    "G4, a field after the file": part() + FIELD + END,
    "G4, 64 fields around the file": FIELD * 32 + part() + FIELD * 32 + END,
    "G4, a field with a transfer encoding": part(b"YQ==", b"form-data; name=f", b"Content-Transfer-Encoding: base64\r\n")
    + part()
    + END,
    "G4, a field whose name mentions a file": part(b"a", b'form-data; name="a; filename=b.jpg"') + part() + END,
    "G4, a part without a disposition": b"--B\r\nContent-Type: image/jpeg\r\n\r\n123\r\n" + part() + END,
    "G4, only filename*": part(disposition=b"form-data; name=f; filename*=UTF-8''%e2%82%ac.jpg") + END,
    "G4, filename and filename*": part(disposition=b"form-data; name=f; filename=a.jpg; filename*=utf-8''../a%00.jpg") + END,
    "G4, a filename with quotes": part(disposition=b'form-data; name="f"; filename="a\\"; b="c.jpg"') + END,
    "G4, a Windows path": part(disposition=b'form-data; name="f"; filename="C:\\photos\\"') + END,
    "G4, an empty filename": part(disposition=b'form-data; name="f"; filename=""') + END,
    "G4, capital letters": part(disposition=b'Form-Data; Name="f"; FileName="a.jpg"') + END,
    "G4, an image type instead of a filename": part(disposition=b'form-data; name="f"', more=b"content-type: IMAGE/jpeg\r\n")
    + END,
    "G4, a binary type instead of a filename": part(
        disposition=b'form-data; name="f"', more=b"Content-Type: application/octet-stream\r\n"
    )
    + END,
}
REJECTED = {
    "empty": (b"", "before its closing"),
    "the end only": (END, "malformed|has no file|before its closing"),
    "unterminated": (part(), "before its closing"),
    "cut in the file": (part()[:-100], "before its closing"),
    "cut in the headers": (part()[:30], "before its closing"),
    "cut in the end": (part() + b"--B-", "malformed|before its closing"),
    "another boundary": (part().replace(b"--B", b"--C") + END, "malformed"),
    "65 files": (part() * 65 + END, "more than 64 files"),
    "a field only": (FIELD + END, "has no file"),
    "65 fields": (FIELD * 65 + part() + END, "more than 64 fields"),
    "no disposition": (b"--B\r\nContent-Type: image/jpeg\r\n\r\n" + IMAGE + b"\r\n" + END, "has no file"),
    "base64": (part(more=b"Content-Transfer-Encoding: base64\r\n") + END, "Transfer-Encoding"),
    "10,000 files": (part(b"") * 10_000 + END, "more than 64 files"),
    "10,000 fields": (FIELD * 10_000 + END, "more than 64 fields"),
    "a part header of 1 MB": (part(more=b"X: " + b"a" * 2**20 + b"\r\n") + END, "malformed"),
    "10,000 part headers": (part(more=b"X: y\r\n" * 10_000) + END, "malformed"),
    "a header without a colon": (part(more=b"nonsense\r\n") + END, "malformed"),
    "not multipart": (IMAGE, "malformed"),
}


@pytest.mark.parametrize("body", READ.values(), ids=READ)
def test_the_file_is_read_byte_for_byte(body: bytes) -> None:
    assert files_in(body, b"B") == [IMAGE]


def test_every_file_of_a_form_is_read() -> None:
    assert files_in(part(b"a") * 63 + part(IMAGE) + END, b"B") == [b"a"] * 63 + [IMAGE]


@pytest.mark.parametrize(("body", "reason"), REJECTED.values(), ids=REJECTED)
def test_a_form_with_anything_but_complete_files_is_rejected(body: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as raised:
        files_in(body, b"B")
    assert raised.value.code == "multipart_invalid"


def test_a_file_that_contains_boundaries_is_read() -> None:
    image = b"\r\n--" + b"\r\n--A--\r\n" * 1000
    assert files_in(part(image) + END, b"B") == [image]


def test_an_empty_file_is_empty() -> None:
    assert files_in(part(b"") + END, b"B") == [b""]


def test_parsing_a_form_takes_the_memory_of_a_few_copies() -> None:
    body = part(bytes(4 * 2**20)) + END
    tracemalloc.start()
    try:
        files_in(body, b"B")
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()


RAW = {
    "none": {},
    "empty": {"Content-Type": ""},
    "jpeg": {"Content-Type": "image/jpeg"},
    "upper case": {"Content-Type": "IMAGE/PNG"},
    "with a parameter": {"Content-Type": "image/webp; q=1"},
    "bytes": {"Content-Type": "application/octet-stream"},
    "a plain form": {"Content-Type": "application/x-www-form-urlencoded"},
    "text": {"Content-Type": "text/plain"},
    "another multipart": {"Content-Type": "multipart/mixed; boundary=B"},
    "not a media type": {"Content-Type": "image"},
    "identity": {"Content-Type": "image/jpeg", "Content-Encoding": "Identity"},
}


@pytest.mark.parametrize("headers", RAW.values(), ids=RAW)
def test_a_body_of_any_other_type_is_the_image(headers: dict[str, str]) -> None:
    assert boundary_of(Headers(headers)) is None


@pytest.mark.parametrize("boundary", ["B", '"B"', "B; charset=utf-8"])
def test_a_form_has_a_boundary(boundary: str) -> None:
    assert boundary_of(Headers({"Content-Type": f"multipart/form-data; boundary={boundary}"})) == b"B"


BAD_HEADERS = {
    "json": ({"Content-Type": "application/json"}, "media_type_not_supported"),
    "json with a charset": ({"Content-Type": "Application/JSON; charset=utf-8"}, "media_type_not_supported"),
    "gzip": ({"Content-Encoding": "gzip"}, "content_encoding_not_supported"),
    "two encodings": ({"Content-Encoding": "identity, br"}, "content_encoding_not_supported"),
    "no boundary": ({"Content-Type": "multipart/form-data"}, "multipart_invalid"),
    "an empty boundary": ({"Content-Type": 'multipart/form-data; boundary=""'}, "multipart_invalid"),
    "a long boundary": ({"Content-Type": "multipart/form-data; boundary=" + "b" * 71}, "multipart_invalid"),
}


@pytest.mark.parametrize(("headers", "code"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_body_that_cannot_be_an_image_is_rejected(headers: dict[str, str], code: str) -> None:
    with pytest.raises(InputError) as raised:
        boundary_of(Headers(headers))
    assert raised.value.code == code
