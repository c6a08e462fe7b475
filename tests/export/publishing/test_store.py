"""A version appears complete or not at all, even with faults and concurrent publishers; published files never change."""

import errno
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.export.publishing.store import find_content, publish_folder
from edgeline.serve.artifact.reader import names, open_artifact, versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import GoldenError, StoreError

ROOT = Path(__file__).resolve().parents[3]
PUBLISHER = ROOT / "tests" / "support" / "publisher.py"
writer = runpy.run_path(str(PUBLISHER))["writer"]


@pytest.fixture(name="template", scope="module")
def small_artifact(artifact_template: Path, tmp_path_factory: pytest.TempPathFactory, seal: Callable[..., Path]) -> Path:
    """An artifact with as few files as possible and one golden sample."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("manifest.json", "labels.txt", "model.onnx", "golden/golden.json", "golden/0.jpg", "golden/0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(artifact_template / name, folder / name)
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    golden["samples"] = golden["samples"][:1]
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    return seal(folder)


@pytest.fixture(name="folder")
def of_a_name(tmp_path: Path) -> Path:
    return tmp_path / "store" / "colors"


@pytest.fixture(name="publish")
def publisher(folder: Path, template: Path) -> Callable[[str], tuple[Path, bool]]:
    """`publish(content)`: the folder it is published in, and whether it existed."""
    return lambda content: publish_folder(folder, content, writer(template, content))


@pytest.mark.parametrize(("umask", "expected"), [(0o000, 0o755), (0o022, 0o755), (0o077, 0o700)], ids=["000", "022", "077"])
def test_only_the_publisher_can_change_a_published_folder_whatever_the_umask_is(
    publish: Callable[[str], tuple[Path, bool]], umask: int, expected: int
) -> None:
    before = os.umask(umask)
    try:
        published, _ = publish("a")
    finally:
        os.umask(before)
    folders = (published, *(path for path in published.rglob("*") if path.is_dir()))
    assert {path.stat().st_mode & 0o777 for path in folders} == {expected}
    assert {path.stat().st_mode & 0o777 for path in published.rglob("*") if path.is_file()} == {0o444}


def tree(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Every file below a folder: its content, mode and modification time."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_versions_grow_by_one_and_older_ones_stay_as_they_were(publish: Any, folder: Path) -> None:
    assert publish("a") == (folder / "1", False)
    before = tree(folder / "1")
    assert publish("b") == (folder / "2", False)
    assert tree(folder / "1") == before
    assert versions(folder) == [1, 2]
    assert open_artifact(folder).manifest.version == 2


def test_publishing_the_same_content_returns_its_version(publish: Any, folder: Path) -> None:
    publish("a")
    before = tree(folder / "1")
    assert publish("a") == (folder / "1", True)
    assert tree(folder / "1") == before
    assert versions(folder) == [1]


def test_the_content_of_an_older_version_becomes_a_new_one(publish: Any, folder: Path) -> None:
    """Devices load the newest version, so a rollback must be a new one."""
    for content in ("a", "b", "a"):
        publish(content)
    assert versions(folder) == [1, 2, 3]
    assert find_content(folder, "a") == folder / "3"
    assert find_content(folder, "b") is None


def edit_a_file(folder: Path) -> None:
    (folder / "labels.txt").chmod(0o644)
    (folder / "labels.txt").write_text("red\n")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file edited": edit_a_file,
    "a file gone": lambda folder: (folder / "golden" / "0.png").unlink(),
    "a file too many": lambda folder: (folder / "notes.txt").write_text("hello"),
    "a manifest gone": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_version_is_neither_reused_nor_changed(publish: Any, folder: Path, damage: Callable[[Path], object]) -> None:
    publish("a")
    damage(folder / "1")
    damaged = tree(folder / "1")
    assert publish("a") == (folder / "2", False)
    assert tree(folder / "1") == damaged
    assert open_artifact(folder).manifest.provenance["content_sha256"] == "a"


def test_published_files_cannot_be_written_to_by_mistake(publish: Any, folder: Path) -> None:
    publish("a")
    modes = {path.stat().st_mode & 0o777 for path in (folder / "1").rglob("*") if path.is_file()}
    assert modes == {0o444}


def test_a_number_that_was_used_is_not_used_again(publish: Any, folder: Path) -> None:
    (folder / "7").mkdir(parents=True)
    assert publish("a")[0] == folder / "8"


def test_an_artifact_that_fails_its_self_test_is_not_published(folder: Path, template: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(template, tmp_path / "wrong")
    golden = json.loads((wrong / "golden" / "golden.json").read_text())
    golden["samples"][0]["probabilities"].reverse()

    def write(staging: Path, version: int) -> None:
        writer(wrong, "a")(staging, version)
        (staging / "golden" / "golden.json").write_text(json.dumps(golden))
        manifest = json.loads((staging / "manifest.json").read_text())
        [entry] = [e for e in manifest["files"] if e["path"] == "golden/golden.json"]
        data = (staging / "golden" / "golden.json").read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (staging / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(GoldenError, match="not in the model's order"):
        publish_folder(folder, "a", write)
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError("a bug"), MemoryError], ids=str)
def test_a_failed_write_leaves_nothing(folder: Path, template: Path, end: Any) -> None:
    def write(staging: Path, version: int) -> None:
        writer(template, "a")(staging, version)
        raise end

    with pytest.raises(end if isinstance(end, type) else type(end)):
        publish_folder(folder, "a", write)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_publisher_without_the_lock_takes_the_number_and_nothing_is_lost(folder: Path, template: Path) -> None:
    def write(staging: Path, version: int) -> None:
        writer(template, "a")(staging, version)
        shutil.copytree(staging, folder / str(version))

    with pytest.raises(StoreError, match=r"colors/1 was published by a process without the store's lock; publish again"):
        publish_folder(folder, "b", write)
    assert open_artifact(folder).manifest.provenance["content_sha256"] == "a"
    assert versions(folder) == [1]


def test_a_store_that_is_a_file_is_rejected(publish: Any, folder: Path) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot be written: (Not a directory|File exists) .*; nothing was published"):
        publish("a")


def test_a_staged_folder_is_not_a_version(folder: Path, template: Path) -> None:
    seen = []

    def write(staging: Path, version: int) -> None:
        writer(template, "a")(staging, version)
        seen.append((versions(folder), names(folder.parent), staging.name.startswith(".")))

    publish_folder(folder, "a", write)
    assert seen == [([], [], True)]


# Concurrent publishers.


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(PUBLISHER), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def at_once(publishers: list[subprocess.Popen[str]]) -> list[Any]:
    """Wait until every publisher is ready, then start them together."""
    for publisher in publishers:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "ready\n"
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write("\n")
        publisher.stdin.flush()
    return [finish(publisher) for publisher in publishers]


def finish(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def test_concurrent_publishers_get_complete_versions_of_their_own(tmp_path: Path, template: Path) -> None:
    rounds = 20
    publishers = [
        start("publish", tmp_path, template, *(f"{who}{number}" for number in range(rounds))) for who in ("left", "right")
    ]
    left, right = at_once(publishers)
    taken = [version for version, reused in left + right]
    assert not any(reused for _, reused in left + right)
    assert sorted(taken) == list(range(1, 2 * rounds + 1))
    assert taken[:rounds] == sorted(taken[:rounds])
    for who, mine in (("left", left), ("right", right)):
        for number, (version, _) in enumerate(mine):
            artifact = open_artifact(tmp_path / "colors" / str(version))
            assert artifact.manifest.provenance["content_sha256"] == f"{who}{number}"
            assert artifact.manifest.version == version
    assert sorted(path.name for path in (tmp_path / "colors").iterdir() if not path.name.isdigit()) == [".lock"]


@pytest.mark.long
def test_concurrent_publishers_of_the_same_content_get_the_same_version(tmp_path: Path, template: Path) -> None:
    found = at_once([start("publish", tmp_path, template, "a") for _ in range(3)])
    assert sorted(found) == [[[1, False]], [[1, True]], [[1, True]]]
    assert versions(tmp_path / "colors") == [1]


# A fault at every system call.

Found = list[dict[str, Any]]


def faults(tmp_path: Path, template: Path, *arguments: str) -> Found:
    kind, *more = arguments
    found = finish(start(kind, tmp_path, template, *more))
    assert len(found) > 50, "dozens of calls are expected"
    calls = {entry["call"] for entry in found}
    assert calls >= {"open", "write", "os.chmod", "os.mkdir", "os.rename", "os.fsync", "fcntl.flock", "os.scandir"}
    return list(found)


def until_the_rename(found: Found) -> int:
    """The number of calls up to the rename of the version, inclusive."""
    [rename] = [index for index, entry in enumerate(found) if entry["call"] == "os.rename"]
    return rename + 1


KILLED = [
    pytest.param(["first"], [], id="the first version", marks=pytest.mark.long),
    pytest.param([], ["old"], id="the next version", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("more", "old"), KILLED)
def test_a_store_killed_at_any_call_has_the_old_versions_or_the_complete_new_one(
    tmp_path: Path, template: Path, more: list[str], old: list[str]
) -> None:
    found = faults(tmp_path, template, "kill", *more)
    count = until_the_rename(found)
    for index, entry in enumerate(found):
        assert entry["outcome"] == "killed"
        assert entry["shown"] == (old if index < count else [*old, "new"]), entry
        assert (entry["then"], entry["then_shown"]) == ("done", [*old, "new"]), entry
        assert entry["left"] == [".lock", *map(str, range(1, len(old) + 2))], entry


def test_a_store_killed_at_every_eighth_call_has_the_old_version_or_the_complete_new_one(
    tmp_path: Path, template: Path
) -> None:
    found = finish(start("kill", tmp_path, template, "sample"))
    assert len(found) > 6
    assert {entry["outcome"] for entry in found} == {"killed"}
    shown = [entry["shown"] for entry in found]
    assert shown[0] == ["old"]
    assert shown == sorted(shown)
    assert {tuple(versions) for versions in shown} <= {("old",), ("old", "new")}
    assert all(
        (entry["then"], entry["then_shown"], entry["left"]) == ("done", ["old", "new"], [".lock", "1", "2"]) for entry in found
    )


@pytest.mark.long
@pytest.mark.parametrize("fault", ["EIO", "EACCES"])
def test_an_error_of_any_call_is_reported_and_publishes_nothing(tmp_path: Path, template: Path, fault: str) -> None:
    found = faults(tmp_path, template, fault)
    count = until_the_rename(found)
    [_, staging, *_] = [index for index, entry in enumerate(found) if entry["call"] == "os.mkdir"]
    for index, entry in enumerate(found):
        is_listing = entry["call"] == "os.scandir" and fault == "EACCES"  # Python skips folders that it may not list
        if (index < staging or is_listing) and entry["outcome"] == "done":
            # Reading or deleting something old failed, or making the files read-only; the new version is complete.
            assert entry["shown"] == ["old", "new"], entry
        elif index < count:
            assert re.match(rf"(Store|Artifact)Error: .*{os.strerror(getattr(errno, fault))}", entry["outcome"]), entry
            assert entry["shown"] == ["old"], entry
        else:
            assert re.match("StoreError: .*is published, but the disk does not confirm it", entry["outcome"]), entry
            assert entry["shown"] == ["old", "new"], entry
        assert (entry["then"], entry["then_shown"], entry["left"]) == ("done", ["old", "new"], [".lock", "1", "2"]), entry


@pytest.mark.long
def test_a_full_disk_at_any_call_publishes_nothing_and_the_next_publisher_cleans_up(tmp_path: Path, template: Path) -> None:
    found = faults(tmp_path, template, "ENOSPC")
    count = until_the_rename(found)
    for index, entry in enumerate(found):
        assert re.match(rf"(Store|Artifact)Error: .*{os.strerror(errno.ENOSPC)}", entry["outcome"]), entry
        assert entry["shown"] == (["old"] if index < count else ["old", "new"]), entry
        assert (entry["then"], entry["then_shown"], entry["left"]) == ("done", ["old", "new"], [".lock", "1", "2"]), entry


def test_a_published_artifact_passes_its_self_test(publish: Any) -> None:
    target, _ = publish("a")
    self_test = Classifier.open(target).self_test
    assert self_test is not None
    assert self_test.samples == 1
