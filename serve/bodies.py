"""From an HTTP request to the bytes of the one image in it.

Two forms: the image itself as the body, which is the plain way, or `multipart/form-data` with one file part, for browsers and
forms. Either is refused by its declared length before a byte is read, and by its real length as it comes, so a request holds
at most `max_bytes` of memory here.
"""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from serve.errors import InputError

FORM_OVERHEAD = 64 * 2**10
"""Bytes that boundaries and part headers may add to an image."""


def boundary_of(headers: Headers) -> bytes | None:
    """The boundary of a multipart request, None where the body is the image itself.

    Raises:
        InputError: the body is something else, compressed, or its boundary is missing.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise InputError(
            "the body has a Content-Encoding; send the image as it is, pictures are compressed already",
            code="content_encoding_not_supported",
        )
    media_type, options = parse_options_header(headers.get("content-type", ""))
    if media_type == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046, section 5.1.1
            raise InputError("the multipart Content-Type names no boundary of 1 to 70 characters", code="multipart_invalid")
        return boundary
    if media_type in (b"", b"application/octet-stream") or media_type.startswith(b"image/"):
        return None
    raise InputError(
        "this Content-Type is not read here; send the image's bytes as image/* or application/octet-stream, "
        "or multipart/form-data with one file",
        code="media_type_not_supported",
    )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a request's body.

    Raises:
        InputError: it is longer than `max_bytes`; where its length was declared, nothing was read.
    """
    too_large = InputError(f"the body is over the limit of {max_bytes:,} bytes", code="body_too_large")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise too_large
        body += chunk
    return bytes(body)


def only_file(body: bytes, boundary: bytes) -> bytes:
    """The bytes of the one file in a multipart body.

    Raises:
        InputError: the body is malformed or cut off, or holds anything but exactly one file.
    """
    form = _Form()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_part_data": form.on_part_data,
            "on_end": form.on_end,
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise _invalid("the multipart body is malformed") from error
    if not form.ended:
        raise _invalid("the multipart body ends before its closing boundary")
    if not form.is_file:
        raise _invalid("the multipart body holds no file; send the image as a part with a filename")
    return bytes(form.data)


class _Form:
    """What the parser found so far; stops it at the second part."""

    def __init__(self) -> None:
        self.parts = 0
        self.is_file = self.ended = False
        self.data = bytearray()
        self._name, self._value = bytearray(), bytearray()

    def on_part_begin(self) -> None:
        self.parts += 1
        if self.parts > 1:
            raise _invalid("the multipart body holds several parts, expected one file; top_k belongs in the query")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self.is_file = b"filename" in parse_options_header(bytes(self._value))[1]
        elif self._name.lower() == b"content-transfer-encoding" and bytes(self._value).lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise _invalid("the part has a Content-Transfer-Encoding; send the file's bytes as they are")
        self._name, self._value = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.data += data[start:end]

    def on_end(self) -> None:
        self.ended = True


def _invalid(message: str) -> InputError:
    return InputError(message, code="multipart_invalid")
