"""Any damage to an artifact is found before any of it is parsed."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve import classifier
from edgeline.serve.artifact import golden
from edgeline.serve.artifact.reader import names, open_artifact, resolve, versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, DigestError, StoreError


@pytest.fixture(name="folder")
def published(make_artifact: Callable[..., Path]) -> Path:
    return make_artifact()


@pytest.fixture
def _no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if ONNX Runtime or the golden samples' decoder is reached."""

    def reached(*_: object, **__: object) -> None:
        pytest.fail("a parser was reached")

    monkeypatch.setattr(classifier, "load", reached)
    monkeypatch.setattr(golden, "run_self_test", reached)


FILES = ["model.onnx", "labels.txt", "card.md", "golden/golden.json", "golden/0.jpg", "golden/3.png"]


def test_a_complete_artifact_is_opened(folder: Path) -> None:
    artifact = open_artifact(folder)
    assert artifact.manifest.name == "colors"
    assert artifact.read("labels.txt") == b"red\ngreen\nblue\ndark\n"


@pytest.mark.usefixtures("_no_parser")
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_rejected(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for _ in range(20):
        data = bytearray(whole)
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        (folder / name).write_bytes(data)
        with pytest.raises(DigestError, match=f"{name}: .*copy the artifact again"):
            Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_a_resized_file_is_rejected(folder: Path, name: str, change: int) -> None:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size + change)
    with pytest.raises(DigestError, match=f"{size + change:,} bytes, the manifest has {size:,}"):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_rejected(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: No such file"):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "golden/extra", "deep/er/extra"])
def test_an_extra_file_is_rejected(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    with pytest.raises(ArtifactError, match=f"not in its manifest: {name}"):
        Classifier.open(folder)


def test_in_place_of_a_store_one_of_its_artifacts_is_to_be_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "birds store" / "birds" / "1")
    with pytest.raises(ArtifactError, match="it is a store, so name one of its artifacts: .*birds store/birds$"):
        Classifier.open(tmp_path / "birds store")


@pytest.mark.parametrize("name", [".DS_Store", "golden/._0.png", "@eaDir/model.onnx/thumb.jpg", "Thumbs.db", "lost+found/x"])
def test_what_a_file_manager_leaves_in_an_artifact_is_ignored(folder: Path, name: str) -> None:
    """F11: a .DS_Store stopped the server."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\0\0\0\1Bud1")
    Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
@pytest.mark.parametrize("name", [*FILES, "manifest.json", "golden"])
def test_a_link_is_rejected_even_with_the_right_target(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="plain file"):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
def test_a_pipe_is_rejected_without_waiting(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    with pytest.raises(ArtifactError, match="plain file"):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
def test_a_renamed_case_is_rejected(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "Model.onnx")
    with pytest.raises(ArtifactError, match=r"Model\.onnx"):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
def test_the_model_of_another_version_is_rejected(folder: Path, make_artifact: Callable[..., Path]) -> None:
    other = make_artifact(version=2)
    data = (other / "model.onnx").read_bytes()
    (other / "model.onnx").write_bytes(data[:-4] + b"\0\0\0\0")
    shutil.copy(other / "model.onnx", folder / "model.onnx")
    with pytest.raises(DigestError):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
def test_a_labels_file_that_contradicts_the_manifest_is_rejected(make_artifact: Callable[..., Path]) -> None:
    folder = make_artifact(labels=["green", "red", "blue", "dark"])
    with pytest.raises(ArtifactError, match="does not list the labels"):
        Classifier.open(folder)


@pytest.mark.usefixtures("_no_parser")
def test_a_huge_manifest_is_rejected_without_reading(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 2**40)
    with pytest.raises(ArtifactError, match="the limit is"):
        Classifier.open(folder)


def test_a_swap_after_opening_is_noticed(folder: Path) -> None:
    artifact = open_artifact(folder)
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[::-1])
    with pytest.raises(DigestError, match=hashlib.sha256(data[::-1]).hexdigest()[:12]):
        artifact.read("model.onnx")


def test_a_file_that_the_manifest_does_not_name_is_not_read(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="has no file '../secret'"):
        open_artifact(folder).read("../secret")


def test_a_names_folder_opens_its_newest_version(make_artifact: Callable[..., Path]) -> None:
    folders = [make_artifact(version=number) for number in (2, 10, 9)]
    (folders[0].parent / "011").mkdir()
    (folders[0].parent / "12.tmp").mkdir()
    (folders[0].parent / "13").symlink_to(folders[0])
    assert versions(folders[0].parent) == [2, 9, 10]
    assert resolve(folders[0].parent) == folders[1]
    assert resolve(folders[0]) == folders[0]


def test_a_store_lists_its_names(make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    store = make_artifact(name="b").parent.parent
    make_artifact(name="a")
    for name in ("Not-A-Name", "empty", ".staging"):
        (store / name).mkdir()
    (store / "linked").symlink_to(store / "a")
    assert names(store) == ["a", "b"]
    assert names(tmp_path / "absent") == []


def test_a_store_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(StoreError, match="cannot be read: Not a directory"):
        names(tmp_path / "store")


NOWHERE = {"absent": "absent", "an empty folder": "", "a name too long": "x" * 5000}


@pytest.mark.parametrize("name", NOWHERE.values(), ids=NOWHERE)
def test_a_path_without_an_artifact_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact at|cannot be read"):
        open_artifact(tmp_path / name)


def test_the_manifest_of_the_template_is_readable_json(folder: Path) -> None:
    assert json.loads((folder / "manifest.json").read_text())["schema"] == "edgeline.artifact/1"
