"""Decisions about photos in CSV files: durable, shared by processes, and readable by `edgeline prepare`."""

import multiprocessing
from pathlib import Path

import pytest

from edgeline.pipeline.sources.csv_table import read_table
from edgeline.serve.errors import DataError, InputError
from edgeline.serve.inbox.decisions import Decisions, check_label


@pytest.fixture(autouse=True)
def photos(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "a, b.jpg"):
        (tmp_path / name).touch()


def label_many(path: Path, writer: int) -> None:
    for number in range(25):
        (path.parent / f"{writer}-{number}.jpg").touch()
        Decisions(path).label(f"{writer}-{number}.jpg", f"class {writer}")


def test_labels_are_a_table_that_prepare_reads(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "labels.csv")
    decisions.label("a, b.jpg", 'the "great" tit')
    decisions.label("c.jpg", "wren")
    decisions.none_of_these("d.jpg")
    assert decisions.read() == {"a, b.jpg": 'the "great" tit', "c.jpg": "wren", "d.jpg": None}
    assert [(row.name, row.label) for row in read_table(tmp_path / "labels.csv").rows] == [
        ("a, b.jpg", 'the "great" tit'),
        ("c.jpg", "wren"),
    ]
    decisions.undo("c.jpg")
    decisions.undo("d.jpg")
    decisions.undo("never decided.jpg")
    assert Decisions(tmp_path / "labels.csv").read() == {"a, b.jpg": 'the "great" tit'}


def test_no_decision_of_two_processes_is_lost(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=label_many, args=(tmp_path / "labels.csv", writer)) for writer in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Decisions(tmp_path / "labels.csv").read()) == 50
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".jpg") == [".labels.lock", "labels.csv"]


def test_the_second_decision_about_a_photo_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "labels.csv")
    decisions.label("a.jpg", "wren")
    for decide in (lambda: decisions.label("a.jpg", "robin"), lambda: decisions.none_of_these("a.jpg")):
        with pytest.raises(InputError, match="already decided: 'wren'"):
            decide()
    assert decisions.read() == {"a.jpg": "wren"}


def test_a_photo_that_a_server_has_replaced_gets_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg is gone") as caught:
        Decisions(tmp_path / "labels.csv").label("a.jpg", "wren")
    assert caught.value.code == "gone"
    assert Decisions(tmp_path / "labels.csv").read() == {}


def test_columns_and_rows_that_someone_has_added_stay(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbfpath,label,camera\r\na.jpg,wren,north\r\nb.jpg,robin,south\r\n")
    decisions = Decisions(path)
    decisions.undo("a.jpg")
    decisions.label("c.jpg", "owl")
    assert path.read_text() == "path,label,camera\nb.jpg,robin,south\nc.jpg,owl,\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path;label\na.jpg;wren\n", "no column 'path'"),
        ("path,label\na.jpg,wren,more\n", "row 2: more fields"),
        ('path,label\n"a.jpg,wren\n', "not a CSV file"),
    ],
)
def test_a_damaged_file_is_an_error_and_stays_as_it_is(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Decisions(path).label("b.jpg", "robin")
    assert path.read_text() == content


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        Decisions(tmp_path / "missing" / "labels.csv").label("a.jpg", "wren")


def test_a_class_name_is_one_line_of_text() -> None:
    assert check_label("  wren ") == "wren"
    for wrong in ("", "  ", "two\nlines", "\x07", "long" * 100):
        with pytest.raises(InputError, match="one line"):
            check_label(wrong)
