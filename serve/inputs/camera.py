"""Frames of a camera, through OpenCV: upright RGB pictures that go the same way as a decoded file.

    for picture in from_camera("0", every_s=1.0, stop=stop):
        ...

A camera does not wait: a thread reads it all the time, and whoever asks gets the newest frame; those in between are dropped. A
video file is no camera: every frame of it comes, one after another, and its end is no failure.

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
"""A camera that gives no frame for so long has stopped."""


def load_cv2() -> Any:
    """Import OpenCV, with nothing of its own on stderr.

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
    """The frames of a camera, or of a video file.

    Args:
        source: a camera's number, the path of its device, or a video file.
        every_s: seconds from one frame to the next, of a video file in its own time; 0 takes all that there is time for.
        stop: ends it.

    Raises:
        InputError: it cannot be opened, or gives no more frames.
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = load_cv2()
    is_number = source.isascii() and source.isdigit()
    capture = cv2.VideoCapture(int(source) if is_number else source)
    if not capture.isOpened():
        raise InputError(
            f"the camera {source} cannot be opened; is it there, may this user read it, and does nothing else hold it?",
            code="camera_unusable",
        )
    if not is_number and Path(source).is_file():
        yield from film_frames(capture, source, every_s=every_s, stop=stop, clock=cv2.CAP_PROP_POS_MSEC)
    else:
        yield from live_frames(capture, source, every_s=every_s, stop=stop)


def film_frames(capture: Any, source: str, *, every_s: float, stop: Stop, clock: int) -> Iterator[Picture]:
    """Every frame of a file whose time has come; `clock` is the property that tells the file's own time in ms.

    Raises:
        InputError: there is not one frame in it.
    """
    number, due_ms = 0, 0.0
    while not stop.asked:
        at_ms = capture.get(clock)
        there, frame_HW3 = capture.read()
        if not there:
            break
        number += 1
        if at_ms >= due_ms:
            due_ms += 1000 * every_s
            yield _picture(number, frame_HW3)
    capture.release()
    if not number and not stop.asked:
        raise InputError(f"{source} holds no frame that can be decoded", code="camera_stopped")


def live_frames(capture: Any, source: str, *, every_s: float, stop: Stop, silence_s: float = SILENCE_S) -> Iterator[Picture]:
    """The newest frame, again and again, until asked to stop.

    Raises:
        InputError: the camera says that it has no more frames, or says nothing for `silence_s`.
    """
    newest = _Newest(capture)
    try:
        due = time.monotonic()
        while not stop.wait(due - time.monotonic()):
            due = time.monotonic() + every_s
            if stop.readable(newest.arrived, silence_s):
                number, frame_HW3 = newest.take()
                if frame_HW3 is None:
                    raise InputError(f"the camera {source} gives no more frames (after {number:,})", code="camera_stopped")
                yield _picture(number, frame_HW3)
            elif not stop.asked:
                raise InputError(f"the camera {source} gave no frame for {silence_s:g} s", code="camera_stopped")
    finally:
        newest.close()


class _Newest:
    """A thread that owns a camera, reads it and keeps the newest frame only."""

    def __init__(self, capture: Any) -> None:
        self.arrived, self._arrives = os.pipe()
        """Readable while there is a frame that was not taken."""
        self._capture = capture
        self._number = 0
        self._frame: Any = None
        self._fresh = self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="edgeline-camera", daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, Any]:
        """The newest frame and its number; None once there are no more."""
        with self._lock:
            os.read(self.arrived, 1)
            self._fresh = False
            return self._number, self._frame

    def close(self) -> None:
        """Stop reading, and wait for the frame at hand; a camera that hangs is left to the end of the process."""
        self._closed = True
        self._thread.join(1.0)
        if not self._thread.is_alive():
            os.close(self.arrived)
            os.close(self._arrives)

    def _read(self) -> None:
        try:
            while not self._closed:
                there, frame_HW3 = self._capture.read()
                if not there:
                    break
                self._put(frame_HW3)
        except Exception as error:  # OpenCV's own, of a driver that fails: no more frames, whatever it says
            LOG.debug("the camera failed", exc_info=error)
        self._put(None)
        self._capture.release()

    def _put(self, frame_HW3: Any) -> None:
        with self._lock:
            self._number += frame_HW3 is not None
            self._frame = frame_HW3
            if not self._fresh:
                os.write(self._arrives, b"f")
                self._fresh = True


def _picture(number: int, frame_HW3: Any) -> Picture:
    """A frame as OpenCV gives it, blue first, as a picture."""
    from PIL import Image

    where: dict[str, str | int] = {"frame": number}
    if frame_HW3.dtype != "uint8" or frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3:
        reason = f"the camera gives {frame_HW3.dtype} of shape {frame_HW3.shape}; expected uint8 (H, W, 3)"
        return Picture(where, InputError(reason, code="mode_not_supported"))
    return Picture(where, Image.fromarray(frame_HW3[..., ::-1].copy()))
