"""A newer version takes over when it has proven itself, and only then."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, ConfigError
from edgeline.serve.hot_reload import VersionWatcher

MakeArtifact = Callable[..., Path]


@pytest.fixture(name="told")
def _told() -> list[str]:
    return []


@pytest.fixture(name="follower")
def following(make_artifact: MakeArtifact, told: list[str]) -> VersionWatcher:
    return VersionWatcher(make_artifact().parent, Classifier.open, told.append)


def damage(folder: Path) -> Path:
    """Change a byte of the model."""
    data = bytearray((folder / "model.onnx").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx").write_bytes(data)
    return folder


def test_nothing_happens_while_there_is_nothing_newer(follower: VersionWatcher, told: list[str]) -> None:
    before = follower.classifier
    follower.look()
    assert (follower.classifier, told) == (before, [])


def test_a_newer_version_takes_over(follower: VersionWatcher, told: list[str], make_artifact: MakeArtifact) -> None:
    make_artifact(version=3)
    follower.look()
    assert follower.classifier.manifest.version == 3
    assert follower.classifier.proof is not None
    make_artifact(version=2)
    follower.look()
    assert follower.classifier.manifest.version == 3
    assert told == ["now answers with colors 3"]


def test_one_that_does_not_prove_itself_is_told_of_once_and_the_old_one_kept(
    follower: VersionWatcher, told: list[str], make_artifact: MakeArtifact
) -> None:
    before = follower.classifier
    damage(make_artifact(version=2))
    for _ in range(3):
        follower.look()
    assert follower.classifier is before
    assert len(told) == 1
    assert told[0].startswith("keeps colors 1, the newer version cannot be used: model.onnx: ")
    assert told[0].endswith("[digest_mismatch]")
    make_artifact(version=3)
    follower.look()
    assert follower.classifier.manifest.version == 3


def test_one_that_is_still_being_copied_takes_over_when_it_is_whole(
    follower: VersionWatcher, told: list[str], make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    whole = make_artifact(version=2, store=tmp_path / "elsewhere")
    target = follower.classifier.artifact.folder.parent / "2"
    for path in sorted(whole.rglob("*"), reverse=True):  # the manifest not last
        if path.is_file():
            assert follower.classifier.manifest.version == 1
            copied = target / path.relative_to(whole)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
            follower.look()
    assert follower.classifier.manifest.version == 2
    assert told[-1] == "now answers with colors 2"


def test_a_refused_one_is_not_opened_again_while_it_stays_as_it_is(make_artifact: MakeArtifact) -> None:
    opened: list[Path] = []

    def open_classifier(path: Path) -> Classifier:
        opened.append(path)
        return Classifier.open(path)

    follower = VersionWatcher(make_artifact().parent, open_classifier, lambda line: None)
    damage(make_artifact(version=2))
    for _ in range(3):
        follower.look()
    assert [path.name for path in opened] == ["1", "2"]


def test_a_version_under_another_number_is_refused(follower: VersionWatcher, told: list[str]) -> None:
    folder = follower.classifier.artifact.folder
    shutil.copytree(folder, folder.parent / "2")
    follower.look()
    assert follower.classifier.manifest.version == 1
    assert "version 2 holds the manifest of colors 1" in told[0]


def test_a_store_that_goes_away_changes_nothing(follower: VersionWatcher, told: list[str]) -> None:
    shutil.rmtree(follower.classifier.artifact.folder.parent)
    follower.look()
    assert follower.classifier.manifest.version == 1
    assert told == []


def test_it_begins_with_the_newest_that_proves_itself(make_artifact: MakeArtifact, told: list[str]) -> None:
    folder = make_artifact().parent
    make_artifact(version=2)
    broken = damage(make_artifact(version=3))
    follower = VersionWatcher(folder, Classifier.open, told.append)
    follower.look()
    assert follower.classifier.manifest.version == 2
    assert len(told) == 1
    assert told[0].startswith("begins with colors 2, 3 cannot be used: model.onnx")
    shutil.rmtree(folder / "1")
    shutil.rmtree(folder / "2")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        VersionWatcher(broken.parent, Classifier.open, told.append)


def test_one_version_alone_cannot_be_followed(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ConfigError, match="name the folder above it"):
        VersionWatcher(make_artifact(), Classifier.open, print)


def test_its_thread_looks_by_itself_and_ends(make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    changed = threading.Event()
    monkeypatch.setattr("edgeline.serve.hot_reload.INTERVAL_S", 0.01)
    follower = VersionWatcher(make_artifact().parent, Classifier.open, lambda line: changed.set() if "now" in line else None)
    follower.start()
    make_artifact(version=2)
    assert changed.wait(20)
    follower.close()
    assert json.loads((follower.classifier.artifact.folder / "manifest.json").read_text())["version"] == 2
