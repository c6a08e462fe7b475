"""From an HTTP request to the bytes of the images in it.

Two forms: the image itself as the body, which is the plain way, or `multipart/form-data` with one or more files, for browsers
and forms. Either is refused by its declared length before a byte is read, and by its real length as it comes, so a request
holds at most `max_bytes` of memory here, and all of them together at most what their budget says.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from edgeline.serve.errors import InputError, OverloadedError

FORM_OVERHEAD = 64 * 2**10
"""Bytes that boundaries and part headers may add to images."""
MAX_FILES = 64


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
        "or multipart/form-data with files",
        code="media_type_not_supported",
    )


def timeout_s(headers: Headers) -> float | None:
    """How many seconds a request allows by `X-Request-Timeout-Ms`; None where it says nothing.

    Raises:
        InputError: it is no whole number of at least 1.
    """
    value = headers.get("x-request-timeout-ms")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise InputError("X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1", code="timeout_invalid")
    return int(value) / 1000


class Budget:
    """How many bytes of bodies a server holds at once, over all requests."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold more bytes, of what was unpacked or copied from a body, until the block ends.

        Raises:
            OverloadedError: too many bytes are held already.
        """
        if self.held + size > self.max_bytes:
            raise OverloadedError(retry_after_s=1.0)
        self.held += size
        try:
            yield
        finally:
            self.held -= size

    @contextlib.asynccontextmanager
    async def body(self, request: Request, max_bytes: int) -> AsyncIterator[bytes]:
        """Read a request's body, and hold its bytes until the block ends.

        Raises:
            InputError: it is longer than `max_bytes`; where its length was declared, nothing was read.
            OverloadedError: too many bytes of other requests are held.
        """
        too_large = InputError(f"the body is over the limit of {max_bytes:,} bytes", code="body_too_large")
        if int(request.headers.get("content-length", 0)) > max_bytes:
            raise too_large
        taken = 0
        chunks: list[bytes] = []
        try:
            async for chunk in request.stream():
                if taken + len(chunk) > max_bytes:
                    raise too_large
                if self.held + len(chunk) > self.max_bytes:
                    raise OverloadedError(retry_after_s=1.0)
                taken += len(chunk)
                self.held += len(chunk)
                if chunk:
                    chunks.append(chunk)
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()  # or every body would be held twice
            yield body
        finally:
            self.held -= taken


def files_in(body: bytes, boundary: bytes) -> list[bytes]:
    """The bytes of each file in a multipart body.

    Raises:
        InputError: the body is malformed or cut off, or holds anything but 1 to 64 files.
    """
    form = _Form()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_headers_finished": form.on_headers_finished,
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
    if not form.files:
        raise _invalid("the multipart body holds no file; send the image as a part with a filename")
    return [b"".join(part) for part in form.files]


class _Form:
    """What the parser found so far; stops it at the first part that is no file."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self.ended = False
        self._is_file = False
        self._name, self._value = bytearray(), bytearray()

    def on_part_begin(self) -> None:
        if len(self.files) == MAX_FILES:
            raise _invalid(f"the multipart body holds more than {MAX_FILES} files; send them in several requests")
        self.files.append([])
        self._is_file = False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._is_file = b"filename" in parse_options_header(bytes(self._value))[1]
        elif self._name.lower() == b"content-transfer-encoding" and bytes(self._value).lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise _invalid("the part has a Content-Transfer-Encoding; send the file's bytes as they are")
        self._name, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        if not self._is_file:
            raise _invalid("the multipart body holds a part that is no file; send images with a filename, top_k in the query")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1].append(data[start:end])

    def on_end(self) -> None:
        self.ended = True


def _invalid(message: str) -> InputError:
    return InputError(message, code="multipart_invalid")
