"""Frames of a camera or video file through OpenCV, as upright RGB images that are processed like a decoded file.

    for picture in from_camera("0", every_s=1.0, stop=stop):
        ...

Cameras produce frames continuously: a thread reads all of them, the caller gets the newest, and those in between are dropped.
Of a video file every frame is returned in order, and its end is not an error.

Shapes: H x W the camera's own resolution.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeline.serve.errors import InputError, MissingExtraError
from edgeline.serve.inputs.images import Picture
from edgeline.serve.inputs.shutdown import Stop

LOG = logging.getLogger(__name__)

SILENCE_S = 10.0
"""Without a frame for this time, a camera counts as stopped."""


def load_cv2() -> Any:
    """Import OpenCV with its output on stderr disabled.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError("cv2", "camera") from error
    return cv2


def from_camera(source: str, *, every_s: float, stop: Stop) -> Iterator[Picture]:
    """The frames of a camera or a video file.

    Args:
        source: a camera's number, the path of its device, or a video file.
        every_s: seconds between two frames, in a video file's own time; 0 for as many as possible.
        stop: ends it.

    Raises:
        InputError: it cannot be opened, or the camera stopped.
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = load_cv2()
    is_number = source.isascii() and source.isdigit()
    capture = cv2.VideoCapture(int(source) if is_number else source)
    if not capture.isOpened():
        raise InputError(
            f"the camera {source} cannot be opened; check that it exists, that this user may read it, and that no other "
            "program uses it",
            code="camera_unusable",
        )
    if not is_number and Path(source).is_file():
        yield from video_frames(capture, source, every_s=every_s, stop=stop, clock=cv2.CAP_PROP_POS_MSEC)
    else:
        yield from live_frames(capture, source, every_s=every_s, stop=stop)


def video_frames(capture: Any, source: str, *, every_s: float, stop: Stop, clock: int) -> Iterator[Picture]:
    """The due frames of a file; `clock` is the OpenCV property with the file's own time in ms.

    Raises:
        InputError: it has no frames.
    """
    number, due_ms = 0, 0.0
    while not stop.requested:
        at_ms = capture.get(clock)
        found, frame_HW3 = capture.read()
        if not found:
            break
        number += 1
        if at_ms >= due_ms:
            due_ms += 1000 * every_s
            yield _picture(number, frame_HW3)
    capture.release()
    if not number and not stop.requested:
        raise InputError(f"{source} has no frame that can be decoded", code="camera_stopped")


def live_frames(capture: Any, source: str, *, every_s: float, stop: Stop, silence_s: float = SILENCE_S) -> Iterator[Picture]:
    """The newest frame, repeatedly, until a stop is requested.

    Raises:
        InputError: the camera has no more frames, or none for `silence_s`.
    """
    newest = _NewestFrame(capture)
    try:
        due = time.monotonic()
        while not stop.wait(due - time.monotonic()):
            due = time.monotonic() + every_s
            if stop.readable(newest.arrived, silence_s):
                number, frame_HW3 = newest.take()
                if frame_HW3 is None:
                    raise InputError(f"the camera {source} has stopped (after {number:,} frames)", code="camera_stopped")
                yield _picture(number, frame_HW3)
            elif not stop.requested:
                raise InputError(f"the camera {source} has not produced a frame for {silence_s:g} s", code="camera_stopped")
    finally:
        newest.close()


class _NewestFrame:
    """A thread that reads a camera and keeps only the newest frame."""

    def __init__(self, capture: Any) -> None:
        self.arrived, self._arrives = os.pipe()
        """File descriptor that is readable while there is a new frame."""
        self._capture = capture
        self._number = 0
        self._frame: Any = None
        self._has_new = self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="edgeline-camera", daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, Any]:
        """Return the newest frame and its number; None if there are no more."""
        with self._lock:
            os.read(self.arrived, 1)
            self._has_new = False
            return self._number, self._frame

    def close(self) -> None:
        """Stop reading and wait for the current frame; a camera that hangs is abandoned."""
        self._closed = True
        self._thread.join(1.0)
        if not self._thread.is_alive():
            os.close(self.arrived)
            os.close(self._arrives)

    def _read(self) -> None:
        try:
            while not self._closed:
                found, frame_HW3 = self._capture.read()
                if not found:
                    break
                self._put(frame_HW3)
        except Exception as error:  # from OpenCV, if the driver fails: there are no more frames
            LOG.debug("the camera failed", exc_info=error)
        self._put(None)
        self._capture.release()

    def _put(self, frame_HW3: Any) -> None:
        with self._lock:
            self._number += frame_HW3 is not None
            self._frame = frame_HW3
            if not self._has_new:
                os.write(self._arrives, b"f")
                self._has_new = True


def _picture(number: int, frame_HW3: Any) -> Picture:
    """Convert an OpenCV frame (BGR) to a picture."""
    from PIL import Image

    where: dict[str, str | int] = {"frame": number}
    if frame_HW3.dtype != "uint8" or frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3:
        reason = f"the camera produces {frame_HW3.dtype} of shape {frame_HW3.shape}; expected uint8 (H, W, 3)"
        return Picture(where, InputError(reason, code="mode_not_supported"))
    return Picture(where, Image.fromarray(frame_HW3[..., ::-1].copy()))
