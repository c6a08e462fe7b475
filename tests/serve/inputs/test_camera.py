"""Frames of a camera: from objects with OpenCV's methods, and from a video file if OpenCV is installed."""

import os
import queue
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.errors import InputError, MissingExtraError
from edgeline.serve.inputs.camera import from_camera, live_frames, load_cv2, video_frames
from edgeline.serve.inputs.images import Picture
from edgeline.serve.inputs.shutdown import Stop

needs_cv2 = pytest.mark.skipif(find_spec("cv2") is None, reason="OpenCV is not installed")


@pytest.fixture(name="stop")
def never_requested() -> Any:
    reader, writer = os.pipe()
    yield Stop(reader)
    os.close(reader)
    os.close(writer)


class Camera:
    """Produces a frame when the test allows it; its shade of blue is its number."""

    def __init__(self) -> None:
        self.light: queue.Queue[bool] = queue.Queue()
        self.number = 0
        self.released = False

    def read(self) -> tuple[bool, Any]:
        if self.number:
            self.light.task_done()  # the reader has finished the previous frame
        if not self.light.get(timeout=20):
            return False, None
        self.number += 1
        return True, np.full((6, 8, 3), (self.number, 0, 0), np.uint8)

    def get(self, clock: int) -> float:
        return 40.0 * self.number

    def release(self) -> None:
        self.released = True


def level(picture: Picture) -> tuple[int, ...]:
    assert isinstance(picture.content, Image.Image)
    return picture.content.getpixel((0, 0))  # type: ignore[return-value]


def test_live_frames_are_the_newest_and_rgb(stop: Stop) -> None:
    camera = Camera()
    frames = live_frames(camera, "0", every_s=0, stop=stop)
    camera.light.put(True)
    first = next(frames)
    assert (first.where, level(first)) == ({"frame": 1}, (0, 0, 1))
    for _ in range(5):
        camera.light.put(True)
    camera.light.join()
    newest = next(frames)
    assert (newest.where, level(newest)) == ({"frame": 6}, (0, 0, 6))
    camera.light.put(False)
    with pytest.raises(InputError, match="has stopped") as rejection:
        next(frames)
    assert rejection.value.code == "camera_stopped"
    assert camera.released


def test_a_silent_camera_is_an_error(stop: Stop) -> None:
    camera = Camera()
    with pytest.raises(InputError, match="the camera 7 has not produced a frame for 0.05 s"):
        next(live_frames(camera, "7", every_s=0, stop=stop, silence_s=0.05))
    camera.light.put(False)


def test_a_failing_camera_driver_is_an_error(stop: Stop) -> None:
    camera = Camera()
    camera.read = lambda: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(InputError, match="has stopped"):
        next(live_frames(camera, "7", every_s=0, stop=stop))


def test_an_unsupported_frame_is_reported_in_its_place(stop: Stop) -> None:
    camera = Camera()
    camera.read = lambda: (True, np.zeros((6, 8), np.uint16))  # type: ignore[method-assign]
    picture = next(live_frames(camera, "7", every_s=0, stop=stop))
    assert isinstance(picture.content, InputError)
    assert "uint16" in str(picture.content)


@pytest.mark.parametrize(("every_s", "expected"), [(0, [1, 2, 3, 4, 5, 6]), (0.08, [1, 3, 5]), (0.1, [1, 4, 6]), (9, [1])])
def test_a_video_file_yields_every_due_frame(stop: Stop, every_s: float, expected: list[int]) -> None:
    camera = Camera()
    for seen in (True,) * 6 + (False,):
        camera.light.put(seen)
    frames = video_frames(camera, "film", every_s=every_s, stop=stop, clock=0)
    assert [frame.where["frame"] for frame in frames] == expected
    assert camera.released


def test_a_video_file_without_frames_is_an_error(stop: Stop) -> None:
    camera = Camera()
    camera.light.put(False)
    with pytest.raises(InputError, match="film has no frame"):
        list(video_frames(camera, "film", every_s=0, stop=stop, clock=0))


def test_without_opencv_the_error_names_the_extra(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeline\[camera\]'"):
        next(from_camera("0", every_s=0, stop=stop))


@needs_cv2
def test_a_video_file_is_read_in_its_colors(stop: Stop, tmp_path: Path) -> None:
    cv2 = load_cv2()
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for red in (0, 100, 200):
        writer.write(np.full((48, 64, 3), (0, 0, red), np.uint8))
    writer.release()
    frames = list(from_camera(str(path), every_s=0, stop=stop))
    assert [frame.where["frame"] for frame in frames] == [1, 2, 3]
    for red, frame in zip((0, 100, 200), frames, strict=True):
        np.testing.assert_allclose(level(frame), (red, 0, 0), atol=8)


@needs_cv2
@pytest.mark.parametrize("source", ["97", "/dev/no-such-camera", "setup"])
def test_a_missing_camera_is_reported_in_one_line(stop: Stop, source: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"the camera {source} cannot be opened") as rejection:
        next(from_camera(source, every_s=0, stop=stop))
    assert rejection.value.code == "camera_unusable"
    assert capfd.readouterr() == ("", "")
