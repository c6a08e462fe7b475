import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.sources.file_walk import Skipped, WalkRules, open_regular, read_tree
from edgeline.serve.errors import ImageError


def found(root: Path, rules: WalkRules = WalkRules()) -> dict[str, str | None]:
    """The result of a walk: the code of the problem, by name."""
    tree = read_tree(str(root), rules)
    assert len(tree.files) == len(set(tree.files))
    return {**dict.fromkeys(tree.files), **{name: problem.code for name, problem in tree.problems}}


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
    "link to a folder outside": (lambda path: path.symlink_to("/etc"), "path_escapes_root"),
    "link to the root": (lambda path: path.symlink_to(".."), "link_loop"),
    "link to its own folder": (lambda path: path.symlink_to("."), "link_loop"),
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
    assert read_tree(str(tmp_path)).skipped == [
        Skipped(".git/", "a development tool"),
        Skipped(".hidden.jpg", "hidden", 1),
        Skipped("Thumbs.db", "Windows"),
        Skipped("__MACOSX/", "macOS"),
        Skipped("desktop.ini", "Windows"),
    ]


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_hidden_files_and_folders_are_read_on_request(tmp_path: Path) -> None:
    fill(tmp_path, ".NET/a.jpg", ".NET/.b.jpg", "c/d.jpg", ".DS_Store")
    assert found(tmp_path) == {"c/d.jpg": None}
    assert found(tmp_path, WalkRules(include_hidden=True)) == {".NET/a.jpg": None, ".NET/.b.jpg": None, "c/d.jpg": None}


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("masks/",), {"a/1.jpg", "a/1_mask.png", "b/2.jpg"}),
        (("*_mask.png", "masks/"), {"a/1.jpg", "b/2.jpg"}),
        (("/a/",), {"b/2.jpg", "b/masks/2.png"}),
        (("*.png", "!a/masks/1.png"), {"a/1.jpg", "a/masks/1.png", "b/2.jpg"}),
    ],
)
def test_patterns_leave_out_files_and_folders_as_gitignore_does(
    tmp_path: Path, patterns: tuple[str, ...], names: set[str]
) -> None:
    fill(tmp_path, "a/1.jpg", "a/1_mask.png", "a/masks/1.png", "b/2.jpg", "b/masks/2.png")
    assert set(found(tmp_path, WalkRules(ignore=patterns))) == names


def test_a_pattern_that_matches_nothing_is_known(tmp_path: Path) -> None:
    tree = read_tree(str(fill(tmp_path, "a/1.jpg", "a/2.png")), WalkRules(ignore=("# a comment", "*.gif", "*.png")))
    assert tree.used_patterns == {"*.png"}


def test_folders_that_are_emptied_by_a_pattern_are_no_folders_of_the_tree(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tree = read_tree(str(fill(tmp_path, "a/1.jpg", "masks/1.png")), WalkRules(ignore=("*.png",)))
    assert tree.folders == ["a", "empty"]


def test_a_link_to_a_folder_inside_is_read_unless_the_folder_is_read_anyway(tmp_path: Path) -> None:
    fill(tmp_path, ".store/ants/1.jpg", "bees/2.jpg")
    (tmp_path / "ants").symlink_to(".store/ants")
    (tmp_path / "wasps").symlink_to("bees")
    assert found(tmp_path) == {"ants/1.jpg": None, "bees/2.jpg": None, "wasps": "link_repeated"}


def test_links_to_folders_outside_are_followed_on_request(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "bees/2.jpg")
    fill(tmp_path, "elsewhere/1.jpg", "elsewhere/deep/3.jpg")
    (root / "ants").symlink_to(tmp_path / "elsewhere")
    (root / "bees" / "4.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    assert found(root) == {"ants": "path_escapes_root", "bees/2.jpg": None, "bees/4.jpg": "path_escapes_root"}
    rules = WalkRules(follow_links=True)
    assert found(root, rules) == dict.fromkeys(["ants/1.jpg", "ants/deep/3.jpg", "bees/2.jpg", "bees/4.jpg"])


def test_links_in_circles_end_and_no_file_is_found_twice(tmp_path: Path) -> None:
    """The walk of a folder with one photo and a link to its parent found 81 in another library (D28)."""
    root = fill(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "beside").symlink_to("../b")
    (root / "b" / "beside").symlink_to("../a")
    (root / "b" / "out").symlink_to(tmp_path)
    names = found(root, WalkRules(follow_links=True))
    assert sorted(name for name, problem in names.items() if problem is None) == ["a/1.jpg", "b/2.jpg"]


def test_what_edgeline_writes_is_skipped_wherever_it_lies(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "artifacts/.edgeline", "artifacts/runs/x/1.png", "b/old/cache/images.sqlite", "b/old/runs/1.png")
    fill(tmp_path, "b/store/birds/3/golden/0.jpg", "b/2.jpg", "mine/3.jpg", "other/4.jpg")
    (tmp_path / "b/store/birds/3/manifest.json").write_text('{"schema": "edgeline.artifact/1"}')
    (tmp_path / "other/manifest.json").write_text('{"schema": "of another tool"}')
    tree = read_tree(str(tmp_path), WalkRules(output=str(tmp_path / "mine")))
    assert tree.files == ["a/1.jpg", "b/2.jpg", "other/4.jpg", "other/manifest.json"]
    assert [skip.name for skip in tree.skipped] == ["artifacts/", "b/old/", "b/store/birds/3/", "mine/"]
    assert {skip.reason for skip in tree.skipped} == {"edgeline"}
    assert tree.folders == ["a", "b", "other"]


def test_a_data_folder_may_also_be_the_folder_of_artifacts(tmp_path: Path) -> None:
    fill(tmp_path, ".edgeline", "runs/x/1.png", "store/y/2.png", "ants/1.jpg")
    assert found(tmp_path) == {"ants/1.jpg": None}


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
