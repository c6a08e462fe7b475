"""From an HTTP request to the bytes of the images in it.

A body is one image, or `multipart/form-data` with one or more files, for browsers and forms; their names and the form's other
fields are ignored. Whether it is an image is decided by its bytes, not by its Content-Type: many clients send a wrong one, or
none. Either kind is rejected by its declared length
before a byte is read, and by its real length as it arrives, so a request buffers at most `max_bytes`, and all requests
together at most their budget.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from edgeline.serve.errors import InputError, OverloadedError

FORM_OVERHEAD = 64 * 2**10
"""Bytes that boundaries and part headers may add to images."""
MAX_FILES = 64
MAX_FIELDS = 64
"""Parts of a form that are not files."""
PARAMETER = re.compile(rb';\s*([^=;"\s]+)\s*=(?:\s*"(?:\\.|[^"\\])*")?')
"""A parameter of a Content-Disposition: its name, and its value if that is quoted."""
FILENAMES = {b"filename", b"filename*"}
"""RFC 7578 forbids the second, yet some clients send it alone for a name that is not ASCII."""
FILE_TYPES = (b"image/", b"application/octet-stream")
"""Content-Types of parts that are files even without a filename: some clients for phones send none."""


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
        InputError: the body is malformed or truncated, has not 1 to 64 files, or more than 64 other fields.
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
    """Collects the files of a form, and skips its other fields."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self.ended = False
        self._fields = 0
        self._name, self._value = bytearray(), bytearray()
        self._parameters: set[bytes] = set()
        self._type = self._encoding = b""
        self._data: list[bytes] | None = None
        """Of the current part; None if it is skipped."""

    def on_part_begin(self) -> None:
        self._parameters = set()
        self._type = self._encoding = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        name, value = bytes(self._name).lower(), bytes(self._value)
        if name == b"content-disposition":
            self._parameters = {each.lower() for each in PARAMETER.findall(value)}
        elif name == b"content-type":
            self._type = value.strip().lower()
        elif name == b"content-transfer-encoding":
            self._encoding = value.strip().lower()
        self._name, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        is_named = b"name" in self._parameters
        if not self._parameters & FILENAMES and not (is_named and self._type.startswith(FILE_TYPES)):
            self._data = None
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _invalid(f"the multipart body has more than {MAX_FIELDS} fields that are not files; send the images only")
            return
        if self._encoding not in (b"", b"binary", b"8bit", b"7bit"):
            raise _invalid("the part has a Content-Transfer-Encoding; send the file's bytes as they are")
        if len(self.files) == MAX_FILES:
            raise _invalid(f"the multipart body has more than {MAX_FILES} files; send them in several requests")
        self._data = []
        self.files.append(self._data)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data.append(data[start:end])

    def on_end(self) -> None:
        self.ended = True


def _invalid(message: str) -> InputError:
    return InputError(message, code="multipart_invalid")
