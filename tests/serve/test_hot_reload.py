"""A newer version is used only after it has passed its golden samples."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.artifact.channels import Channels, Event, Followed
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, ConfigError
from edgeline.serve.hot_reload import VersionWatcher

MakeArtifact = Callable[..., Path]


@pytest.fixture(name="reported")
def _reported() -> list[str]:
    return []


@pytest.fixture(name="watcher")
def following(make_artifact: MakeArtifact, reported: list[str]) -> VersionWatcher:
    return VersionWatcher(Followed(make_artifact().parent), Classifier.open, reported.append)


def damage(folder: Path) -> Path:
    """Change a byte of the model."""
    data = bytearray((folder / "model.onnx").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx").write_bytes(data)
    return folder


def test_without_a_newer_version_nothing_changes(watcher: VersionWatcher, reported: list[str]) -> None:
    before = watcher.classifier
    watcher.poll()
    assert (watcher.classifier, reported) == (before, [])


def test_a_newer_version_is_loaded(watcher: VersionWatcher, reported: list[str], make_artifact: MakeArtifact) -> None:
    make_artifact(version=3)
    watcher.poll()
    assert watcher.classifier.manifest.version == 3
    assert watcher.classifier.self_test is not None
    make_artifact(version=2)
    watcher.poll()
    assert watcher.classifier.manifest.version == 3
    assert reported == ["switched to colors 3"]


def test_a_version_that_fails_its_golden_samples_is_reported_once_and_not_used(
    watcher: VersionWatcher, reported: list[str], make_artifact: MakeArtifact
) -> None:
    before = watcher.classifier
    damage(make_artifact(version=2))
    for _ in range(3):
        watcher.poll()
    assert watcher.classifier is before
    assert len(reported) == 1
    assert reported[0].startswith("still using colors 1, the channel's version cannot be used: model.onnx: ")
    assert reported[0].endswith("[digest_mismatch]")
    make_artifact(version=3)
    watcher.poll()
    assert watcher.classifier.manifest.version == 3


def test_a_version_that_is_being_copied_is_used_once_it_is_complete(
    watcher: VersionWatcher, reported: list[str], make_artifact: MakeArtifact, tmp_path: Path
) -> None:
    whole = make_artifact(version=2, store=tmp_path / "elsewhere")
    target = watcher.classifier.artifact.folder.parent / "2"
    for path in sorted(whole.rglob("*"), reverse=True):  # the manifest not last
        if path.is_file():
            assert watcher.classifier.manifest.version == 1
            copied = target / path.relative_to(whole)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
            watcher.poll()
    assert watcher.classifier.manifest.version == 2
    assert reported[-1] == "switched to colors 2"


def test_a_rejected_version_is_not_opened_again_while_its_files_are_unchanged(make_artifact: MakeArtifact) -> None:
    opened: list[Path] = []

    def open_classifier(path: Path) -> Classifier:
        opened.append(path)
        return Classifier.open(path)

    watcher = VersionWatcher(Followed(make_artifact().parent), open_classifier, lambda line: None)
    damage(make_artifact(version=2))
    for _ in range(3):
        watcher.poll()
    assert [path.name for path in opened] == ["1", "2"]


def test_a_version_with_another_number_in_its_manifest_is_rejected(watcher: VersionWatcher, reported: list[str]) -> None:
    folder = watcher.classifier.artifact.folder
    shutil.copytree(folder, folder.parent / "2")
    watcher.poll()
    assert watcher.classifier.manifest.version == 1
    assert "version 2 has the manifest of colors 1" in reported[0]


def test_a_store_that_disappears_changes_nothing(watcher: VersionWatcher, reported: list[str]) -> None:
    shutil.rmtree(watcher.classifier.artifact.folder.parent)
    watcher.poll()
    assert watcher.classifier.manifest.version == 1
    assert reported == []


def test_it_starts_with_the_newest_valid_version(make_artifact: MakeArtifact, reported: list[str]) -> None:
    folder = make_artifact().parent
    make_artifact(version=2)
    broken = damage(make_artifact(version=3))
    watcher = VersionWatcher(Followed(folder), Classifier.open, reported.append)
    watcher.poll()
    assert watcher.classifier.manifest.version == 2
    assert len(reported) == 1
    assert reported[0].startswith("using colors 2, version 3 cannot be used: model.onnx")
    shutil.rmtree(folder / "1")
    shutil.rmtree(folder / "2")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        VersionWatcher(Followed(broken.parent), Classifier.open, reported.append)


def test_a_single_version_cannot_be_watched(make_artifact: MakeArtifact) -> None:
    with pytest.raises(ConfigError, match="use its parent folder"):
        VersionWatcher(Followed(make_artifact()), Classifier.open, print)


def test_its_thread_polls_and_ends_on_close(make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    changed = threading.Event()
    monkeypatch.setattr("edgeline.serve.hot_reload.INTERVAL_S", 0.01)
    watcher = VersionWatcher(
        Followed(make_artifact().parent), Classifier.open, lambda line: changed.set() if "switched" in line else None
    )
    watcher.start()
    make_artifact(version=2)
    assert changed.wait(20)
    watcher.close()
    assert json.loads((watcher.classifier.artifact.folder / "manifest.json").read_text())["version"] == 2


def test_a_channel_is_followed_and_a_broken_version_is_replaced_by_the_one_it_had_before(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(version=1).parent
    make_artifact(version=2)
    broken = make_artifact(version=3)
    (broken / "model.onnx").write_bytes(b"")
    moves = [Event(at="", by="", action="promote", version=version, why="", channel="stable") for version in (1, 3)]
    channels = Channels(pointers={"stable": 3}, history=tuple(moves))
    (folder / "channels.json").write_text(json.dumps(channels.to_json()))
    reported: list[str] = []
    watcher = VersionWatcher(Followed(folder), Classifier.open, reported.append)
    assert watcher.classifier.manifest.version == 1
    assert reported[0].startswith("using colors 1, version 3 cannot be used: ")
    (folder / "channels.json").write_text(json.dumps(Channels(pointers={"stable": 2}).to_json()))
    watcher.poll()
    assert watcher.classifier.manifest.version == 2
    watcher.poll()
    assert reported[1:] == ["switched to colors 2"]
