"""From an HTTP request to the bytes of the images in it.

A body is one image, or `multipart/form-data` with one or more files, for browsers and forms. Whether it is an image is decided
by its bytes, not by its Content-Type: many clients send a wrong one, or none. Either kind is rejected by its declared length
before a byte is read, and by its real length as it arrives, so a request buffers at most `max_bytes`, and all requests
together at most their budget.
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
    """The boundary of a multipart request; None if the body is the image itself.

    Raises:
        InputError: the body is JSON, has a Content-Encoding, or its boundary is missing.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise InputError(
            "the body has a Content-Encoding; send the image uncompressed, image formats are compressed already",
            code="content_encoding_not_supported",
        )
    media_type, options = parse_options_header(headers.get("content-type", ""))
    if media_type == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046, section 5.1.1
            raise InputError("the multipart Content-Type has no boundary of 1 to 70 characters", code="multipart_invalid")
        return boundary
    if media_type == b"application/json":
        raise InputError(
            "JSON is not accepted here; send the image's bytes as the body, or tensors as JSON to "
            "POST /v2/models/{model}/infer",
            code="media_type_not_supported",
        )
    return None


def timeout_s(headers: Headers) -> float | None:
    """The deadline in a request's `X-Request-Timeout-Ms`, in seconds; None if it has none.

    Raises:
        InputError: it is not a whole number of at least 1.
    """
    value = headers.get("x-request-timeout-ms")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise InputError("X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1", code="timeout_invalid")
    return int(value) / 1000


class Budget:
    """Limits the bytes of request bodies in memory, over all requests."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Reserve bytes for what was unpacked or copied from a body, until the block ends.

        Raises:
            OverloadedError: the budget is used up.
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
        """Read a request's body, and reserve its bytes until the block ends.

        Raises:
            InputError: it is longer than `max_bytes`; if its length was declared, nothing was read.
            OverloadedError: the budget is used up.
        """
        too_large = InputError(f"the body is over the limit of {max_bytes:,} bytes", code="body_too_large")
        if int(request.headers.get("content-length", 0)) > max_bytes:
            raise too_large
        size = 0
        chunks: list[bytes] = []
        try:
            async for chunk in request.stream():
                if size + len(chunk) > max_bytes:
                    raise too_large
                if self.held + len(chunk) > self.max_bytes:
                    raise OverloadedError(retry_after_s=1.0)
                size += len(chunk)
                self.held += len(chunk)
                if chunk:
                    chunks.append(chunk)
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()  # or every body would be in memory twice
            yield body
        finally:
            self.held -= size


def files_in(body: bytes, boundary: bytes) -> list[bytes]:
    """The bytes of each file in a multipart body.

    Raises:
        InputError: the body is malformed or truncated, or has anything but 1 to 64 files.
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
        raise _invalid("the multipart body has no file; send the image as a part with a filename")
    return [b"".join(part) for part in form.files]


class _Form:
    """Collects the files of a form; stops the parser at the first part that is not a file."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self.ended = False
        self._is_file = False
        self._name, self._value = bytearray(), bytearray()

    def on_part_begin(self) -> None:
        if len(self.files) == MAX_FILES:
            raise _invalid(f"the multipart body has more than {MAX_FILES} files; send them in several requests")
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
            raise _invalid("the multipart body has a part that is not a file; send images with a filename, top_k in the query")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1].append(data[start:end])

    def on_end(self) -> None:
        self.ended = True


def _invalid(message: str) -> InputError:
    return InputError(message, code="multipart_invalid")
