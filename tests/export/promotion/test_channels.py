"""Changing the channels of a name: a change appears as a whole, with its history, and names no unusable version."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.export.promotion.channels import Change, promote, record_kept, roll_back, yank
from edgeline.serve.artifact.channels import read_channels
from edgeline.serve.artifact.reader import resolve, versions
from edgeline.serve.errors import ArtifactError, ConfigError, EdgelineError, StoreError, VerificationError

STABLE = Change("stable", why="checked")


@pytest.fixture(name="folder")
def of_a_name(make_artifact: Callable[..., Path]) -> Path:
    """A name with versions 1 to 3."""
    for version in (2, 3):
        make_artifact(version=version)
    return make_artifact(version=1).parent


def test_a_promotion_moves_the_channel_and_the_history_has_who_when_and_why(folder: Path) -> None:
    promote(folder, 1, STABLE)
    event = promote(folder, 3, Change("stable", why="better", decision={"verdict": "better"}))
    channels = read_channels(folder)
    assert resolve(folder) == folder / "3"
    assert channels.history[-1] == event
    assert (event.action, event.version, event.before, event.why) == ("promote", 3, 1, "better")
    assert "@" in event.by
    assert event.at.endswith("Z")
    assert event.decision is not None
    assert json.loads((folder / event.decision).read_text()) == {"verdict": "better"}


def test_promoting_what_is_in_use_adds_nothing_to_the_history(folder: Path) -> None:
    event = promote(folder, 1, STABLE)
    assert promote(folder, 1, Change("stable", why="again")) == event
    assert len(read_channels(folder).history) == 1


def test_a_decision_against_a_version_is_in_the_history_and_moves_nothing(folder: Path) -> None:
    promote(folder, 1, STABLE)
    event = record_kept(folder, 2, Change("stable", why="worse", decision={"verdict": "worse"}))
    assert (event.action, event.version, event.before) == ("keep", 2, 1)
    assert resolve(folder) == folder / "1"
    with pytest.raises(ArtifactError, match="no other version before 1"):
        roll_back(folder, "stable", "by hand")


def test_a_rollback_returns_to_the_version_before_and_skips_yanked_ones(folder: Path) -> None:
    for version in (1, 2, 3):
        promote(folder, version, STABLE)
    yank(folder, 2, "wrong labels")
    event = roll_back(folder, "stable", "misses sparrows")
    assert (event.version, event.before, event.why) == (1, 3, "misses sparrows")
    assert resolve(folder) == folder / "1"


def test_a_yanked_version_is_left_at_once_and_can_be_allowed_again(folder: Path) -> None:
    promote(folder, 2, STABLE)
    promote(folder, 3, STABLE)
    yank(folder, 3, "crashes on gray photos")
    assert (resolve(folder), resolve(folder, "latest")) == (folder / "2", folder / "2")
    assert (folder / "3").is_dir()
    yank(folder, 3, "was the camera", undo=True)
    assert resolve(folder) == folder / "3"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda folder: promote(folder, 9, STABLE), "version_unknown", "no version 9; published: 1, 2, 3"),
        (lambda folder: promote(folder, 2, Change("latest", why="")), "config_invalid", "latest is always at the newest"),
        (lambda folder: promote(folder, 2, Change("canary", why="")), "stable_not_set", "promote a version to stable first"),
        (lambda folder: promote(folder, 2, Change("1", why="")), "config_invalid", "is no name of a channel"),
        (lambda folder: roll_back(folder, "beta", ""), "channel_unknown", "no channel 'beta' to roll back; set channels: none"),
        (lambda folder: yank(folder, 7, ""), "version_unknown", "no version 7"),
        (lambda folder: yank(folder, 1, "", undo=True), "config_invalid", "version 1 is not yanked"),
    ],
    ids=["unknown", "latest", "canary first", "number", "rollback", "yank", "unyank"],
)
def test_a_change_that_makes_no_sense_is_one_error_and_changes_nothing(
    change: Callable[[Path], object], code: str, message: str, folder: Path
) -> None:
    with pytest.raises(EdgelineError, match=message) as caught:
        change(folder)
    assert caught.value.code == code
    assert not (folder / "channels.json").exists()


def test_a_yanked_version_is_not_promoted(folder: Path) -> None:
    yank(folder, 2, "wrong labels")
    with pytest.raises(ArtifactError, match="yanked because wrong labels; promote another one") as caught:
        promote(folder, 2, STABLE)
    assert caught.value.code == "version_yanked"
    with pytest.raises(ConfigError, match="was yanked already"):
        yank(folder, 2, "again")


def test_a_version_that_has_not_passed_the_gate_is_not_promoted(make_artifact: Callable[..., Path]) -> None:
    folder = make_artifact(version=4, verification={"passed": False}).parent
    with pytest.raises(VerificationError, match="has not passed the release gate"):
        promote(folder, 4, STABLE)


def test_a_damaged_version_is_not_promoted(folder: Path) -> None:
    (folder / "2" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        promote(folder, 2, STABLE)


def test_a_full_disk_loses_no_channel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(folder, 1, STABLE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeline.export.promotion.channels.replace_file", full)
    with pytest.raises(StoreError, match="No space left on device"):
        promote(folder, 2, STABLE)
    assert resolve(folder) == folder / "1"


PROMOTE = """
import sys
from pathlib import Path
from edgeline.export.promotion.channels import Change, promote, yank
folder = Path(sys.argv[1])
for turn in range(10):
    promote(folder, turn % 3 + 1, Change(sys.argv[2], why=sys.argv[2]))
"""


def test_of_changes_by_several_processes_at_once_none_is_lost(folder: Path) -> None:
    promote(folder, 1, STABLE)
    names = ["canary", "beta", "lab"]
    processes = [subprocess.Popen([sys.executable, "-c", PROMOTE, str(folder), name]) for name in names]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    history = read_channels(folder).history
    assert {name: [e.version for e in history if e.channel == name] for name in names} == dict.fromkeys(
        names, [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    )
    assert versions(folder) == [1, 2, 3]
