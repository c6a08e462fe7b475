"""A folder is watched by polling; these tests poll one by one, at times that they choose."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.inputs.folder_watcher import BATCH, RECHECKED, WatchedFolder, WatchOptions

Poll = Callable[[float], list[str]]


class Site:
    """A watched folder, and the reported messages."""

    def __init__(self, folder: Path, *, existing: bool = False) -> None:
        self.folder = folder
        self.reported: list[str] = []
        self.watched = WatchedFolder(folder, WatchOptions(interval_s=1.0, existing=existing), self.reported.append)
        if not existing:
            self.watched.skip_existing()

    def poll(self, now: float) -> list[str]:
        """Names of the files that this poll returns."""
        found = [Path(path) for path in self.watched.poll(now)]
        assert all(path.parent == self.folder for path in found)
        return [path.name for path in found]

    def write(self, name: str, text: str, time_ns: int | None = None) -> None:
        (self.folder / name).write_text(text)
        if time_ns is not None:
            os.utime(self.folder / name, ns=(time_ns, time_ns))


@pytest.fixture(name="site")
def watched_folder(tmp_path: Path) -> Site:
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "before").write_text("there already")
    return Site(folder)


def test_a_file_is_returned_once_after_an_unchanged_interval(site: Site) -> None:
    site.write("a", "whole")
    assert site.poll(0) == []
    assert site.poll(0.5) == []
    assert site.poll(1) == ["a"]
    assert [site.poll(now) for now in range(2, 6)] == [[]] * 4


def test_a_file_is_not_returned_while_it_is_written_to(site: Site) -> None:
    for now in range(4):
        site.write("a", "x" * now)
        assert site.poll(now) == []
    site.write("a", "yyy", 12345)  # the same length, another time
    assert site.poll(4) == []
    assert site.poll(5) == ["a"]


def test_a_file_renamed_into_place_is_returned(site: Site) -> None:
    site.write(".a.partial", "whole")
    assert (site.poll(0), site.poll(1)) == ([], [])
    os.rename(site.folder / ".a.partial", site.folder / "a")
    assert (site.poll(2), site.poll(3)) == ([], ["a"])


def test_existing_files_are_returned_only_with_the_option(site: Site) -> None:
    assert [site.poll(now) for now in range(3)] == [[]] * 3
    first = Site(site.folder, existing=True)
    assert (first.poll(0), first.poll(1)) == ([], ["before"])


def test_several_files_are_returned_in_the_order_of_their_modification(site: Site) -> None:
    for time_ns, name in enumerate(["c", "a", "b"], start=1):
        site.write(name, name, time_ns * 10**9)
    assert (site.poll(0), site.poll(1)) == ([], ["c", "a", "b"])


def test_a_modified_or_replaced_file_is_returned_again(site: Site) -> None:
    site.write("before", "another text")
    assert (site.poll(0), site.poll(1)) == ([], ["before"])
    site.write("new", "a third text")
    os.rename(site.folder / "new", site.folder / "before")
    assert (site.poll(2), site.poll(3)) == ([], ["before"])
    (site.folder / "before").chmod(0o600)
    assert (site.poll(4), site.poll(5)) == ([], [])


def test_folders_hidden_and_deleted_files_are_skipped(site: Site) -> None:
    (site.folder / "deeper").mkdir()
    os.mkfifo(site.folder / "fifo")
    os.symlink("nowhere", site.folder / "dangling")
    site.write(".hidden", "x")
    site.write("Thumbs.db", "x")
    site.write("vanishes", "x")
    assert site.poll(0) == []
    (site.folder / "vanishes").unlink()
    assert (site.poll(1), site.poll(2)) == ([], [])


def test_a_folder_that_disappears_and_comes_back_is_reported_once(site: Site) -> None:
    site.write("a", "whole")
    assert (site.poll(0), site.poll(1)) == ([], ["a"])
    shutil.rmtree(site.folder)
    assert [site.poll(now) for now in (2, 3, 4)] == [[]] * 3
    site.folder.mkdir()
    site.write("a", "another one, under the same name")
    assert (site.poll(5), site.poll(6)) == ([], ["a"])
    assert site.reported == [f"{site.folder}: No such file or directory; waiting for it", f"{site.folder} can be read again"]


def test_after_an_unreadable_folder_no_file_is_returned_twice(site: Site, tmp_path: Path) -> None:
    site.write("a", "whole")
    assert (site.poll(0), site.poll(1)) == ([], ["a"])
    os.rename(site.folder, tmp_path / "elsewhere")
    site.folder.write_text("in its place")
    assert site.poll(2) == []
    site.folder.unlink()
    os.rename(tmp_path / "elsewhere", site.folder)
    assert (site.poll(3), site.poll(4)) == ([], [])
    assert len(site.reported) == 2


def test_a_file_modified_while_the_folder_was_missing_is_returned_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgeline.serve.inputs.folder_watcher.RECHECKED", 0
    )  # as in a folder of so many files that this one is checked much later
    os.rename(site.folder, tmp_path / "elsewhere")
    assert site.poll(0) == []
    (tmp_path / "elsewhere" / "before").write_text("the same inode, another text")
    os.rename(tmp_path / "elsewhere", site.folder)
    assert (site.poll(1), site.poll(2)) == ([], ["before"])


def test_a_missing_folder_is_waited_for(tmp_path: Path) -> None:
    site = Site(tmp_path / "later")
    assert site.poll(0) == []
    site.folder.mkdir()
    site.write("a", "whole")
    assert (site.poll(1), site.poll(2)) == ([], ["a"])


def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the system calls."""
    counted = {"scandir": 0, "stat": 0}
    for name in counted:
        real = getattr(os, name)

        def count(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            counted[name] += 1
            return real(*args)

        monkeypatch.setattr(os, name, count)
    return counted


def test_an_unchanged_folder_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(RECHECKED + 100):
        (tmp_path / str(index)).touch()
    os.utime(tmp_path, (10**9, 10**9))  # long ago, so its time is reliable
    site = Site(tmp_path)
    counted = calls(monkeypatch)
    assert site.poll(0) == []
    assert counted == {"scandir": 0, "stat": 1 + RECHECKED}
    site.write("new", "x")
    assert (site.poll(1), site.poll(2)) == ([], ["new"])
    assert counted["scandir"] >= 1


def test_a_change_within_the_resolution_of_the_modification_time_is_noticed(site: Site) -> None:
    state = site.folder.stat()
    assert site.poll(0) == []
    site.write("a", "whole")
    os.utime(site.folder, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (site.poll(1), site.poll(2)) == ([], ["a"])


def test_very_many_files_are_returned_once_each_in_bounded_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 * BATCH + 500
    for index in range(count):
        (tmp_path / str(index)).touch()
    site = Site(tmp_path, existing=True)
    counted = calls(monkeypatch)
    found: list[str] = []
    for now in (0, 0, 0, *range(1, 20)):
        before = counted["stat"]
        found += site.poll(now)
        assert counted["stat"] - before <= 2 * BATCH + RECHECKED + 1
    assert len(found) == count
    assert set(found) == set(os.listdir(tmp_path))
    assert not site.watched.behind


def test_deleted_names_are_forgotten(tmp_path: Path) -> None:
    import tracemalloc

    site = Site(tmp_path)

    def turn(now: int) -> None:
        for index in range(20):
            site.write(f"{now}-{index}" if index else "always", "x")
        site.poll(2 * now)
        assert len(site.poll(2 * now + 1)) == 20
        for path in tmp_path.iterdir():
            path.unlink()

    turn(0)
    tracemalloc.start()
    for now in range(1, 100):
        turn(now)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50_000
