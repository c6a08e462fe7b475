"""JPEGs one after another in a stream, as written by cameras and `ffmpeg -f image2pipe -c:v mjpeg -`.

The only framing is JPEG's own markers (ITU-T T.81, annex B), so they are parsed: a segment with a length is skipped with its
contents, which may be a thumbnail that is itself a JPEG; compressed data continues until a marker that is neither a stuffed
byte nor a restart. Bytes between two frames (padding, headers of multipart streams) are skipped.

Invariants:
- a frame is returned as soon as its last byte has arrived;
- a damaged frame affects only itself: after an invalid marker, the search for the next frame continues from there;
- at most `max_bytes` and one chunk are buffered; a larger frame is reported as an error and its bytes are dropped on arrival.
"""

import re
from collections.abc import Iterable, Iterator

from edgeline.serve.errors import ImageError, InputError
from edgeline.serve.inputs.images import Picture

START = b"\xff\xd8\xff"
"""Start of image, and the first byte of the following marker."""
END_OF_IMAGE, START_OF_SCAN, FILL = 0xD9, 0xDA, 0xFF
STANDALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length: TEM, and restarts."""
APPLICATION = {*range(0xE0, 0xF0), 0xFE}
"""Application segments and comments: they may contain anything."""
SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), *APPLICATION}
MARKER_IN_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""The end of compressed data: within the data, 0xFF is followed by 0 or by a restart marker."""


class _Cut(Exception):
    """A frame is damaged or over the limit."""

    def __init__(self, at: int, reason: ImageError) -> None:
        super().__init__(at, reason)
        self.at = at
        """Offset at which the search for the next frame starts."""
        self.reason = reason


def from_mjpeg(chunks: Iterable[bytes], max_bytes: int) -> Iterator[Picture]:
    """The frames of a stream, numbered from 1.

    Args:
        chunks: the stream's bytes, in pieces of any size.
        max_bytes: a larger frame is rejected.

    Yields:
        A picture for every start of a JPEG; its content is an error if the frame is truncated or too large.
    """
    stream = _Stream(iter(chunks))
    number = 0
    while stream.seek_start():
        number += 1
        yield Picture({"frame": number}, _frame(stream, max_bytes))
    if number == 0:
        reason = InputError("no JPEG in the stream; --stream mjpeg expects JPEGs one after another", code="not_an_image")
        yield Picture({"frame": 0}, reason)


class _Stream:
    """Buffered bytes of the stream. Offsets are relative to the start of the current frame."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.buffer = bytearray()
        self._chunks = chunks

    def more(self) -> bool:
        """Read another chunk; False at the end."""
        chunk = next(self._chunks, b"")
        self.buffer += chunk
        return bool(chunk)

    def need(self, count: int) -> None:
        """Buffer at least this number of bytes.

        Raises:
            _Cut: the stream ends earlier.
        """
        while len(self.buffer) < count:
            if not self.more():
                raise _damaged(len(self.buffer))

    def drop(self, count: int) -> None:
        """Discard bytes at the start."""
        del self.buffer[:count]

    def seek_start(self) -> bool:
        """Discard everything before the next start of a JPEG; False if there is none."""
        while (found := self.buffer.find(START)) < 0:
            self.drop(max(0, len(self.buffer) - 2))  # a start may span two chunks
            if not self.more():
                return False
        self.drop(found)
        return True


def _frame(stream: _Stream, max_bytes: int) -> bytes | ImageError:
    """Read one frame; the stream is at its start."""
    try:
        end = _walk(stream, max_bytes)
    except _Cut as cut:
        stream.drop(cut.at)
        return cut.reason
    frame = bytes(stream.buffer[:end])
    stream.drop(end)
    return frame


def _walk(stream: _Stream, max_bytes: int) -> int:
    """Return the offset after the frame's last byte."""
    at, scanned = 2, False
    while True:
        stream.need(at + 2)
        if stream.buffer[at] != 0xFF:
            raise _damaged(at)
        marker = stream.buffer[at + 1]
        if marker == END_OF_IMAGE:
            at += 2
        elif marker == FILL:
            at += 1
        elif marker in STANDALONE:
            at += 2
        elif marker == START_OF_SCAN:
            at = _data_end(stream, _scan_header_end(stream, at), max_bytes)
            scanned = True
        elif marker in SEGMENTS:
            at = _segment_end(stream, at, may_hold_images=marker in APPLICATION and not scanned)
        else:  # the start of the next frame, or an invalid marker
            raise _damaged(at)
        if at > max_bytes:
            raise _too_large(at, max_bytes)
        if marker == END_OF_IMAGE:
            return at


def _segment_end(stream: _Stream, at: int, *, may_hold_images: bool) -> int:
    stream.need(at + 4)
    end = at + 2 + int.from_bytes(stream.buffer[at + 2 : at + 4])
    try:
        stream.need(end + 1)
    except _Cut as cut:
        raise _Cut(at + 2, cut.reason) from None  # a damaged length may span whole frames
    holds_start = not may_hold_images and stream.buffer.find(START, at + 2, end + 1) >= 0
    if end < at + 4 or stream.buffer[end] != 0xFF or holds_start:
        raise _damaged(at + 2)
    return end


def _scan_header_end(stream: _Stream, at: int) -> int:
    stream.need(at + 4)
    length = int.from_bytes(stream.buffer[at + 2 : at + 4])
    if not 8 <= length <= 14:  # one to four components
        raise _damaged(at + 2)
    return at + 2 + length


def _data_end(stream: _Stream, at: int, max_bytes: int) -> int:
    while True:
        found = MARKER_IN_DATA.search(stream.buffer, at)
        at = found.start() if found else max(at, len(stream.buffer) - 1)
        if found and stream.buffer[at + 1] != FILL:
            return at
        if at > max_bytes:
            raise _too_large(at, max_bytes)
        if found:  # a fill byte may precede a restart
            at += 1
        else:
            stream.need(len(stream.buffer) + 1)


def _damaged(at: int) -> _Cut:
    return _Cut(at, ImageError("the frame is truncated or damaged: it has an invalid JPEG marker", code="image_truncated"))


def _too_large(at: int, max_bytes: int) -> _Cut:
    return _Cut(at, ImageError(f"the frame has more than {max_bytes:,} bytes, the limit", code="image_too_large"))
