"""What `edgeline label` needs, what it prints, and its errors."""

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from edgeline.serve.errors import ConfigError
from edgeline.serve.inbox.decisions import Decisions
from edgeline.serve.labeling.main import LabelingConfig, open_session, parse_classes
from edgeline.serve.labeling.photos import find_photos, in_order, with_predictions
from tests.support.image_files import JPEG, PNG
from tests.support.processes import DEADLINE_S, HTTP, MAIN, ROOT, line_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, artifact_template: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(3):
        shutil.copy(artifact_template / "golden" / f"{index}.jpg", folder / f"{index}.jpg")
    (folder / "more" / "a, b.png").write_bytes(PNG)
    (folder / "broken.jpg").write_bytes(b"<svg></svg>")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(JPEG)
    return folder


def test_photos_are_found_with_their_names_and_the_others_with_the_reason(folder: Path, tmp_path: Path) -> None:
    photos, unreadable = find_photos(folder, folder)
    assert [photo.name for photo in photos] == ["0.jpg", "1.jpg", "2.jpg", "more/a, b.png"]
    assert [photo.media_type for photo in photos] == ["image/jpeg"] * 3 + ["image/png"]
    assert unreadable == [f"{folder / 'broken.jpg'}: not an image, but an SVG image"]
    assert find_photos(folder, tmp_path / "labels")[0][0].name == str(folder / "0.jpg")


def test_an_artifact_predicts_photos_without_a_note(folder: Path, artifact_template: Path) -> None:
    from edgeline.serve.classifier import Classifier

    lines: list[str] = []
    photos = with_predictions(find_photos(folder, folder)[0], Classifier.open(artifact_template, threads=1), lines.append)
    assert [photo.predictions[0][0] for photo in photos[:3]] == ["red", "green", "blue"]
    assert lines == ["classifying 4 photos with colors 1"]
    assert in_order(photos)[0].name == "more/a, b.png"  # it shows all colors


def test_the_command_prints_its_address_and_serves_until_it_is_stopped(folder: Path, artifact_template: Path) -> None:
    pipe = subprocess.PIPE
    command = [*MAIN, "label", str(folder), "--artifact", str(artifact_template)]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+/\S{20,}/", line_of(process.stdout))
            assert found
            state = HTTP.get(f"{found[0]}state").json()
            assert (state["classes"], state["total"]) == (["red", "green", "blue", "dark"], 4)
            url = httpx.URL(found[0])
            assert HTTP.get(f"http://127.0.0.1:{url.port}/").status_code == 404
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == [
            f"edgeline: left out: {folder / 'broken.jpg'}: not an image, but an SVG image",
            "edgeline: classifying 4 photos with colors 1",
            f"edgeline: 4 of 4 photos wait for a label, 4 classes; labels go to {folder / 'labels.csv'}",
        ]


def test_classes_come_from_the_option_the_model_and_the_labels_so_far(folder: Path, artifact_template: Path) -> None:
    Decisions(folder / "labels.csv").label("0.jpg", "violet")
    config = LabelingConfig(folder=folder, artifact=artifact_template, classes=("blue", "pink"))
    assert open_session(config).classes == ["blue", "pink", "red", "green", "dark", "violet"]
    assert open_session(LabelingConfig(folder=folder)).classes == ["violet"]


def test_classes_are_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("wren\n\nrobin, the second\nwren\n")
    assert parse_classes(str(tmp_path / "classes.txt")) == ["wren", "robin, the second"]
    assert parse_classes("wren, robin,") == ["wren", "robin"]
    for wrong in (",", "missing.txt"):
        with pytest.raises(ConfigError):
            parse_classes(wrong)


def bad_inputs(tmp_path: Path, folder: Path, template: Path, taken: int) -> dict[str, tuple[list[object], str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    (tmp_path / "spoiled").mkdir()
    shutil.copy(folder / "0.jpg", tmp_path / "spoiled")
    (tmp_path / "spoiled" / "labels.csv").write_text("path;label\n")
    store = tmp_path / "store"
    shutil.copytree(template, store / "colors" / "1")
    (store / "inbox").mkdir()
    shutil.copy(folder / "0.jpg", store / "inbox")
    classes = ["--classes", "a,b"]
    return {
        "missing": ([tmp_path / "missing", *classes], "does not exist; expected a folder with photos [folder_missing]"),
        "empty": ([tmp_path / "empty", *classes], "has no image that can be read; expected photos [no_images]"),
        "unreadable": ([tmp_path / "broken", *classes], "a.jpg: not an image); expected photos [no_images]"),
        "no classes": ([folder], "give --artifact, or --classes with names or a file [classes_missing]"),
        "no artifact": ([folder, "--artifact", "nothing"], "no artifact of that name in artifacts/store [artifact_missing]"),
        "port in use": (
            [folder, *classes, "--port", taken],
            "another --port, port 0 picks a free one [address_unusable]",
        ),
        "damaged labels": ([tmp_path / "spoiled", *classes], "separated by commas: save it that way again [csv_invalid]"),
        "nowhere to write": (
            [folder, *classes, "--labels", tmp_path / "no" / "labels.csv"],
            "are written there [unwritable]",
        ),
        "in the store": ([store / "inbox", *classes], "the photos of another folder [folder_in_store]"),
        "in an artifact": (
            [store / "colors" / "1" / "golden", *classes],
            "the photos of another folder [folder_in_store]",
        ),
    }


def test_bad_input_is_one_line(run: Run, tmp_path: Path, folder: Path, artifact_template: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for name, (given, message) in bad_inputs(tmp_path, folder, artifact_template, taken.getsockname()[1]).items():
            code, out, err = run("label", *given)
            line = err.splitlines()[-1]
            assert (name, code, out) == (name, 1, "")
            assert line.endswith(message), (name, line)
            assert line.startswith("edgeline: ")
    assert not (folder / "labels.csv").exists()


def test_a_folder_named_like_a_version_is_no_artifact(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "holidays").mkdir()
    folder.rename(tmp_path / "holidays" / "2026")
    assert open_session(LabelingConfig(folder=tmp_path / "holidays" / "2026", classes=("a",))).classes == ["a"]


def test_an_inbox_needs_no_options(tmp_path: Path) -> None:
    from edgeline.serve.inbox.folder import Inbox, InboxLimits, Note

    inbox = Inbox.create(tmp_path / "inbox", consent="sign", limits=InboxLimits())
    with pytest.raises(ConfigError, match="has no photos yet"):
        find_photos(tmp_path / "inbox", tmp_path / "inbox")
    for version, label in ((1, "red"), (2, "green")):
        predictions = ((label, 0.6), ("blue", 0.4))
        note = Note(model="colors", version=version, predictions=predictions, share=0.9, uncertainty=0.8, distance=None)
        inbox.add(JPEG + bytes([version]), ".jpg", note)
    inbox.record_classes(("red", "green"))
    photos = with_predictions(find_photos(tmp_path / "inbox", tmp_path / "inbox")[0], None)
    assert [photo.predictions[0][0] for photo in in_order(photos)] == ["green", "red"]  # the newest version first
    assert open_session(LabelingConfig(folder=tmp_path / "inbox")).classes == ["red", "green"]
