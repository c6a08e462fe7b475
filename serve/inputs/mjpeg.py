"""JPEGs one after another in a stream, as cameras and `ffmpeg -f image2pipe -c:v mjpeg -` write them.

There is no framing but JPEG's own markers (ITU-T T.81, annex B), so they are walked: a segment that has a length is passed over
with whatever lies in it, which may be a thumbnail that is a JPEG itself; compressed data goes on until a marker that is neither
a stuffed byte nor a restart. What lies between two frames (padding, the headers of multipart streams) is passed over.

Invariants:
- a frame comes as soon as its last byte is there;
- a damaged frame costs itself only: where the markers stop making sense, the next frame is looked for from there on;
- at most `max_bytes` and one chunk are held; of a larger frame comes the reason, and its bytes are dropped on the way.
"""

import re
from collections.abc import Iterable, Iterator

from edgeline.serve.errors import ImageError, InputError
from edgeline.serve.inputs.images import Picture

START = b"\xff\xd8\xff"
"""Start of image, and the first byte of the marker that has to follow."""
END_OF_IMAGE, START_OF_SCAN, FILL = 0xD9, 0xDA, 0xFF
STANDALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length: TEM, and restarts."""
APPLICATION = {*range(0xE0, 0xF0), 0xFE}
"""Segments of applications, and comments: whatever they like is in them."""
SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), *APPLICATION}
MARKER_IN_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""What may end compressed data: 0xFF is followed by 0 where it is data, and by a restart where the data goes on."""


class _Cut(Exception):
    """A frame ends before its end, or is over the limit."""

    def __init__(self, at: int, reason: ImageError) -> None:
        super().__init__(at, reason)
        self.at = at
        """The offset from which the next frame is looked for."""
        self.reason = reason


def from_mjpeg(chunks: Iterable[bytes], max_bytes: int) -> Iterator[Picture]:
    """The frames of a stream, numbered from 1.

    Args:
        chunks: the stream's bytes, in pieces of any size.
        max_bytes: a larger frame is refused.

    Yields:
        A picture for every start of a JPEG; its content is an error where the frame is cut off or too large.
    """
    stream = _Stream(iter(chunks))
    number = 0
    while stream.seek_start():
        number += 1
        yield Picture({"frame": number}, _frame(stream, max_bytes))
    if number == 0:
        reason = InputError(
            "there is no JPEG in the stream; --stream mjpeg expects JPEGs one after another", code="not_an_image"
        )
        yield Picture({"frame": 0}, reason)


class _Stream:
    """The bytes that came and were not used yet. Offsets count from the start of the frame at hand."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.held = bytearray()
        self._chunks = chunks

    def more(self) -> bool:
        """Take another chunk; False at the end."""
        chunk = next(self._chunks, b"")
        self.held += chunk
        return bool(chunk)

    def need(self, count: int) -> None:
        """Have that many bytes.

        Raises:
            _Cut: the stream ends before.
        """
        while len(self.held) < count:
            if not self.more():
                raise _damaged(len(self.held))

    def drop(self, count: int) -> None:
        """Forget what was used."""
        del self.held[:count]

    def seek_start(self) -> bool:
        """Drop everything before the next start of a JPEG; False if there is none."""
        while (found := self.held.find(START)) < 0:
            self.drop(max(0, len(self.held) - 2))  # a start may be cut in two by the chunks
            if not self.more():
                return False
        self.drop(found)
        return True


def _frame(stream: _Stream, max_bytes: int) -> bytes | ImageError:
    """Take one frame off the stream, which stands at its start."""
    try:
        end = _walk(stream, max_bytes)
    except _Cut as cut:
        stream.drop(cut.at)
        return cut.reason
    frame = bytes(stream.held[:end])
    stream.drop(end)
    return frame


def _walk(stream: _Stream, max_bytes: int) -> int:
    """Return the offset behind the frame's last byte."""
    at, scanned = 2, False
    while True:
        stream.need(at + 2)
        if stream.held[at] != 0xFF:
            raise _damaged(at)
        marker = stream.held[at + 1]
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
        else:  # the start of the next frame, or none that there is
            raise _damaged(at)
        if at > max_bytes:
            raise _too_large(at, max_bytes)
        if marker == END_OF_IMAGE:
            return at


def _segment_end(stream: _Stream, at: int, *, may_hold_images: bool) -> int:
    stream.need(at + 4)
    end = at + 2 + int.from_bytes(stream.held[at + 2 : at + 4])
    try:
        stream.need(end + 1)
    except _Cut as cut:
        raise _Cut(at + 2, cut.reason) from None  # a damaged length may reach over whole frames
    holds_start = not may_hold_images and stream.held.find(START, at + 2, end + 1) >= 0
    if end < at + 4 or stream.held[end] != 0xFF or holds_start:
        raise _damaged(at + 2)
    return end


def _scan_header_end(stream: _Stream, at: int) -> int:
    stream.need(at + 4)
    length = int.from_bytes(stream.held[at + 2 : at + 4])
    if not 8 <= length <= 14:  # one to four components
        raise _damaged(at + 2)
    return at + 2 + length


def _data_end(stream: _Stream, at: int, max_bytes: int) -> int:
    while True:
        found = MARKER_IN_DATA.search(stream.held, at)
        at = found.start() if found else max(at, len(stream.held) - 1)
        if found and stream.held[at + 1] != FILL:
            return at
        if at > max_bytes:
            raise _too_large(at, max_bytes)
        if found:  # what is filled up may be a restart
            at += 1
        else:
            stream.need(len(stream.held) + 1)


def _damaged(at: int) -> _Cut:
    return _Cut(at, ImageError("the frame is cut off or damaged: its markers end before the JPEG does", code="image_truncated"))


def _too_large(at: int, max_bytes: int) -> _Cut:
    return _Cut(at, ImageError(f"the frame has over {max_bytes:,} bytes, the limit", code="image_too_large"))
