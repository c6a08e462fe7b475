"""A folder is watched by looking at it; here the looks come one by one, at times of the tests' own."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.serve.inputs.folder_watcher import BATCH, RECHECKED, Watched, Watching

Look = Callable[[float], list[str]]


class Site:
    """A watched folder, and what was told of it."""

    def __init__(self, folder: Path, *, existing: bool = False) -> None:
        self.folder = folder
        self.told: list[str] = []
        self.watched = Watched(folder, Watching(interval_s=1.0, existing=existing), self.told.append)
        if not existing:
            self.watched.pass_over()

    def look(self, now: float) -> list[str]:
        """Names of the files that this look hands on."""
        found = [Path(path) for path in self.watched.look(now)]
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


def test_a_file_comes_when_it_was_left_alone_for_an_interval_and_once(site: Site) -> None:
    site.write("a", "whole")
    assert site.look(0) == []
    assert site.look(0.5) == []
    assert site.look(1) == ["a"]
    assert [site.look(now) for now in range(2, 6)] == [[]] * 4


def test_a_file_that_is_still_written_to_waits_until_it_is_not(site: Site) -> None:
    for now in range(4):
        site.write("a", "x" * now)
        assert site.look(now) == []
    site.write("a", "yyy", 12345)  # as long as before, at another time
    assert site.look(4) == []
    assert site.look(5) == ["a"]


def test_a_file_renamed_into_place_comes(site: Site) -> None:
    site.write(".a.partial", "whole")
    assert (site.look(0), site.look(1)) == ([], [])
    os.rename(site.folder / ".a.partial", site.folder / "a")
    assert (site.look(2), site.look(3)) == ([], ["a"])


def test_what_is_there_already_comes_only_if_it_is_asked_for(site: Site) -> None:
    assert [site.look(now) for now in range(3)] == [[]] * 3
    first = Site(site.folder, existing=True)
    assert (first.look(0), first.look(1)) == ([], ["before"])


def test_several_come_in_the_order_they_were_written(site: Site) -> None:
    for time_ns, name in enumerate(["c", "a", "b"], start=1):
        site.write(name, name, time_ns * 10**9)
    assert (site.look(0), site.look(1)) == ([], ["c", "a", "b"])


def test_a_file_that_is_changed_or_replaced_comes_again(site: Site) -> None:
    site.write("before", "another text")
    assert (site.look(0), site.look(1)) == ([], ["before"])
    site.write("new", "a third text")
    os.rename(site.folder / "new", site.folder / "before")
    assert (site.look(2), site.look(3)) == ([], ["before"])
    (site.folder / "before").chmod(0o600)
    assert (site.look(4), site.look(5)) == ([], [])


def test_what_is_no_file_or_hidden_or_gone_is_passed_over(site: Site) -> None:
    (site.folder / "deeper").mkdir()
    os.mkfifo(site.folder / "fifo")
    os.symlink("nowhere", site.folder / "dangling")
    site.write(".hidden", "x")
    site.write("vanishes", "x")
    assert site.look(0) == []
    (site.folder / "vanishes").unlink()
    assert (site.look(1), site.look(2)) == ([], [])


def test_a_folder_that_goes_and_comes_back_is_told_of_once(site: Site) -> None:
    site.write("a", "whole")
    assert (site.look(0), site.look(1)) == ([], ["a"])
    shutil.rmtree(site.folder)
    assert [site.look(now) for now in (2, 3, 4)] == [[]] * 3
    site.folder.mkdir()
    site.write("a", "another one, under the same name")
    assert (site.look(5), site.look(6)) == ([], ["a"])
    assert site.told == [f"{site.folder}: No such file or directory; waiting for it", f"{site.folder} can be read again"]


def test_a_folder_that_only_could_not_be_read_brings_nothing_twice(site: Site, tmp_path: Path) -> None:
    site.write("a", "whole")
    assert (site.look(0), site.look(1)) == ([], ["a"])
    os.rename(site.folder, tmp_path / "elsewhere")
    site.folder.write_text("in its place")
    assert site.look(2) == []
    site.folder.unlink()
    os.rename(tmp_path / "elsewhere", site.folder)
    assert (site.look(3), site.look(4)) == ([], [])
    assert len(site.told) == 2


def test_a_file_that_changed_while_the_folder_was_away_comes_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgeline.serve.inputs.folder_watcher.RECHECKED", 0
    )  # as in a folder of so many files that the turn of this one is far
    os.rename(site.folder, tmp_path / "elsewhere")
    assert site.look(0) == []
    (tmp_path / "elsewhere" / "before").write_text("the same inode, another text")
    os.rename(tmp_path / "elsewhere", site.folder)
    assert (site.look(1), site.look(2)) == ([], ["before"])


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    site = Site(tmp_path / "later")
    assert site.look(0) == []
    site.folder.mkdir()
    site.write("a", "whole")
    assert (site.look(1), site.look(2)) == ([], ["a"])


def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count what is asked of the system."""
    counted = {"scandir": 0, "stat": 0}
    for name in counted:
        real = getattr(os, name)

        def count(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            counted[name] += 1
            return real(*args)

        monkeypatch.setattr(os, name, count)
    return counted


def test_a_look_at_a_folder_in_which_nothing_happened_does_not_list_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(RECHECKED + 100):
        (tmp_path / str(index)).touch()
    os.utime(tmp_path, (10**9, 10**9))  # long ago, so its time can be believed
    site = Site(tmp_path)
    counted = calls(monkeypatch)
    assert site.look(0) == []
    assert counted == {"scandir": 0, "stat": 1 + RECHECKED}
    site.write("new", "x")
    assert (site.look(1), site.look(2)) == ([], ["new"])
    assert counted["scandir"] >= 1


def test_a_change_within_the_same_tick_of_the_folders_clock_is_seen(site: Site) -> None:
    state = site.folder.stat()
    assert site.look(0) == []
    site.write("a", "whole")
    os.utime(site.folder, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (site.look(1), site.look(2)) == ([], ["a"])


def test_very_many_files_are_taken_in_bounded_looks_and_each_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * BATCH + 500
    for index in range(count):
        (tmp_path / str(index)).touch()
    site = Site(tmp_path, existing=True)
    counted = calls(monkeypatch)
    found: list[str] = []
    for now in (0, 0, 0, *range(1, 20)):
        before = counted["stat"]
        found += site.look(now)
        assert counted["stat"] - before <= 2 * BATCH + RECHECKED + 1
    assert len(found) == count
    assert set(found) == set(os.listdir(tmp_path))
    assert not site.watched.behind


def test_names_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    import tracemalloc

    site = Site(tmp_path)

    def turn(now: int) -> None:
        for index in range(20):
            site.write(f"{now}-{index}" if index else "always", "x")
        site.look(2 * now)
        assert len(site.look(2 * now + 1)) == 20
        for path in tmp_path.iterdir():
            path.unlink()

    turn(0)
    tracemalloc.start()
    for now in range(1, 100):
        turn(now)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50_000
