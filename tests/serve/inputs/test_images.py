"""Paths through a pipe, one per line."""

import os
import shutil
from pathlib import Path

import pytest

from edgeline.serve.errors import InputError
from edgeline.serve.inputs.images import MAX_PATH_BYTES, Picture, from_lines, from_paths

LIMIT = 10_000


@pytest.fixture(name="folder")
def three_files(tmp_path: Path) -> Path:
    for name in ("a", "b c", os.fsdecode(b"\xff")):
        (tmp_path / name).write_bytes(os.fsencode(name))
    return tmp_path


def read(text: bytes, size: int = 7, limit: int = LIMIT) -> list[Picture]:
    return list(from_lines((text[at : at + size] for at in range(0, len(text), size)), limit))


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CR LF (F16)"])
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_every_line_is_a_path_for_any_chunk_size(folder: Path, size: int, newline: bytes, lines: int) -> None:
    names = [b"a", b"b c", b"\xff"]
    end = newline * lines
    text = newline.join(os.fsencode(folder) + b"/" + name for name in names) + end
    pictures = read(text, size)
    assert [picture.content for picture in pictures] == names
    assert pictures[1].where == {"path": f"{folder}/b c"}


def test_unreadable_files_are_reported_in_their_place(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(LIMIT + 1))
    names = ["a", "absent", "", "large", ".", "nul\0", "b c"]
    pictures = read("\n".join(f"{folder}/{name}" if name else "" for name in names).encode() + b"\n-")
    codes = [picture.content.code if isinstance(picture.content, InputError) else "" for picture in pictures]
    unreadable = "image_unreadable"
    assert codes == ["", unreadable, "image_too_large", unreadable, unreadable, "", unreadable], "- is a path here"


def test_leftovers_of_systems_in_a_folder_are_not_pictures(tmp_path: Path) -> None:
    """F16: Thumbs.db and desktop.ini were errors."""
    for name in ("a.jpg", "Thumbs.db", "desktop.ini", ".DS_Store", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [picture.where["path"] for picture in from_paths([str(tmp_path)], LIMIT)] == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/b.jpg",
    ]


def test_a_folder_of_folders_is_not_searched_and_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "bees").mkdir()
    [picture] = from_paths([str(tmp_path)], LIMIT)
    assert f"name one, such as {tmp_path}/bees" in str(picture.content)


def test_an_endless_line_is_reported_once_and_truncated(folder: Path) -> None:
    line = b"x" * (20 * MAX_PATH_BYTES)
    pictures = read(line + b"\n" + os.fsencode(folder) + b"/a", 2**16)
    assert [len(str(picture.where["path"])) for picture in pictures] == [83, len(f"{folder}/a")]
    assert isinstance(pictures[0].content, InputError)
    assert pictures[1].content == b"a"


def test_empty_input_yields_no_pictures() -> None:
    assert read(b"") == []
    assert read(b"\n\n") == []


def test_files_are_read_one_at_a_time(folder: Path) -> None:
    """A list of a million paths costs no memory."""
    pictures = from_lines([os.fsencode(folder) + b"/a\n" + os.fsencode(folder) + b"/b c\n"], LIMIT)
    assert next(pictures).content == b"a"
    shutil.rmtree(folder)
    assert isinstance(next(pictures).content, InputError)
