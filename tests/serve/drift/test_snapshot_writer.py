"""The file of drift statistics is complete at any time, and written while the program runs."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift import snapshot_writer as snapshot_file
from edgeline.serve.drift.snapshot_writer import drift_file


@pytest.fixture(name="classifier", scope="module")
def opened(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template)


def observe(drift: Any) -> None:
    drift.observe(np.zeros((12, 16, 3), np.uint8), np.array([1, 0, 0, 0], np.float32))


def count_in(path: Path) -> int:
    return int(json.loads(path.read_text())["count"])


def test_the_file_is_written_during_processing(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written, counts = tmp_path / "drift.json", threading.Event(), []
    real = snapshot_file._write

    def write(path: Path, drift: Any) -> None:
        real(path, drift)
        counts.append(count_in(path))
        written.set()

    monkeypatch.setattr(snapshot_file, "INTERVAL_S", 0.001)
    monkeypatch.setattr(snapshot_file, "_write", write)
    with drift_file(path, print) as note:
        for _ in range(3):
            written.clear()
            observe(note(classifier))
            assert written.wait(20)
    assert counts == [1, 2, 3], "nothing is written without new images"
    assert [found.name for found in tmp_path.iterdir()] == ["drift.json"]


def test_without_images_there_is_no_file(tmp_path: Path) -> None:
    with drift_file(tmp_path / "drift.json", print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_reported_and_tried_again(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, called = [], threading.Event()

    def report(line: str) -> None:
        reported.append(line)
        called.set()

    monkeypatch.setattr(snapshot_file, "INTERVAL_S", 0.01)
    folder = tmp_path / "away"
    with drift_file(folder / "drift.json", report) as note:
        observe(note(classifier))
        assert called.wait(20)
        folder.mkdir()
    assert reported[0] == f"{folder}/drift.json cannot be written: No such file or directory; trying again later"
    assert count_in(folder / "drift.json") == 1


def test_a_failed_write_at_the_end_is_an_error(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), drift_file(tmp_path / "away" / "drift.json", print) as note:
        observe(note(classifier))
