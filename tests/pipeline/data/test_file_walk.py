import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.data.file_walk import open_regular, walk
from edgeline.serve.errors import ImageError


def found(root: Path) -> dict[str, str | None]:
    """The result of a walk: the code of the problem, by name."""
    return {os.path.relpath(path, root): problem and problem.code for path, problem in walk(str(root), str(root))}


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


PROBLEMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (os.mkfifo, "not_a_regular_file"),
    "socket": (make_socket, "not_a_regular_file"),
    "link to a FIFO": (lambda path: (os.mkfifo(path.parent / ".f"), path.symlink_to(".f")), "not_a_regular_file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "unreadable"),
    "two links in a cycle": (lambda path: (path.symlink_to(".b"), (path.parent / ".b").symlink_to(path.name)), "unreadable"),
    "broken link": (lambda path: path.symlink_to("gone.jpg"), "unreadable"),
    "link to a file outside": (lambda path: path.symlink_to("/etc/hostname"), "path_escapes_root"),
    "link to a device outside": (lambda path: path.symlink_to("/dev/zero"), "path_escapes_root"),
    "link to a file next to the root": (lambda path: path.symlink_to("../../secret.jpg"), "path_escapes_root"),
    "link to a folder": (lambda path: path.symlink_to("/etc"), "link_to_folder"),
    "link to the root": (lambda path: path.symlink_to(".."), "link_to_folder"),
}


@pytest.mark.parametrize(("make", "code"), PROBLEMS.values(), ids=PROBLEMS)
def test_an_unusable_entry_is_reported_without_blocking(tmp_path: Path, make: Callable[[Path], None], code: str) -> None:
    (tmp_path / "root" / "class").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    make(tmp_path / "root" / "class" / "photo.jpg")
    start = time.monotonic()
    assert found(tmp_path / "root") == {"class/photo.jpg": code}
    assert time.monotonic() - start < 1


def test_a_walk_enters_folders_and_skips_leftovers_of_operating_systems(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/er/b.jpg", ".hidden.jpg", ".git/c.jpg", "Thumbs.db", "desktop.ini", "__MACOSX/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path) == {"a.jpg": None, "deep/er/b.jpg": None}


def test_a_link_to_a_file_inside_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert found(tmp_path) == {"a.jpg": None, "b.jpg": None}


def test_a_folder_whose_name_starts_with_that_of_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root-private").mkdir()
    (tmp_path / "root-private" / "a.jpg").touch()
    (tmp_path / "root" / "a.jpg").symlink_to(tmp_path / "root-private" / "a.jpg")
    assert found(tmp_path / "root") == {"a.jpg": "path_escapes_root"}


def test_names_that_are_not_utf8_are_reported_and_not_entered(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/caf\xe9")
    for name in (b"/caf\xe9/a.jpg", b"/\xff.jpg"):
        with open(root + name, "wb"):
            pass
    assert set(found(tmp_path).values()) == {"name_not_utf8"}
    assert len(found(tmp_path)) == 2


def test_folders_may_be_nested_deeper_than_the_stack(tmp_path: Path) -> None:
    here, depth = os.getcwd(), 1500
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        (tmp_path / "d" / "a.jpg").touch()
        assert found(tmp_path) == {"d/a.jpg": None}
    finally:
        (tmp_path / "d" / "a.jpg").unlink(missing_ok=True)
        for _ in range(depth):  # pytest's own tidying up would recurse
            os.chdir("..")
            os.rmdir("d")
        os.chdir(here)


@pytest.mark.parametrize("name", ["folder", "fifo", "/dev/zero", "absent"])
def test_only_regular_files_are_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError) as caught:
        open_regular(str(tmp_path / name))
    assert caught.value.code == ("unreadable" if name == "absent" else "not_a_regular_file")
