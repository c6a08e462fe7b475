"""The decisions of people about photos, in two CSV files that a spreadsheet can open.

    decisions = Decisions(Path("inbox/labels.csv"))
    decisions.label("3f9a.jpg", "wren")
    decisions.none_of_these("77b0.jpg")
    decisions.undo("3f9a.jpg")

`labels.csv` has the columns `path,label`, which `edgeline prepare` reads; paths are relative to its folder. Photos that show
none of the classes are in `labels.none.csv`, with the column `path`.

Invariant: a file is replaced as a whole, under a lock that all processes share, and is on the disk when a method returns. So a
reader never sees half a row, and of several pages and processes at once none loses a decision. Further columns, and rows that
someone has edited, stay as they are.
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgeline.serve.errors import DataError, InputError

FILE_NAME = "labels.csv"
LOCK = ".labels.lock"
COLUMNS = ("path", "label")
MAX_LABEL = 200
"""Characters of a class name."""


class Table(NamedTuple):
    """A CSV file."""

    columns: list[str]
    rows: list[dict[str, str]]


class Decisions:
    """The decisions in one pair of files. May be used by several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.none_path = path.with_name(f"{path.stem}.none.csv")

    def read(self) -> dict[str, str | None]:
        """The label of each decided photo by its path, in the order of the files; None for none of the classes.

        Raises:
            DataError: a file cannot be read, or has other columns.
        """
        labels: dict[str, str | None] = {row["path"]: row["label"] for row in _read(self.path, COLUMNS).rows}
        return labels | {row["path"]: None for row in _read(self.none_path, COLUMNS[:1]).rows}

    def label(self, path: str, label: str) -> None:
        """Record a photo's label.

        Raises:
            InputError: the photo was decided before, perhaps in another window (code `decided`), or a server has replaced it
                (code `gone`).
            DataError: a file cannot be read or written; it is as before.
        """
        self._add(self.path, COLUMNS, {"path": path, "label": label})

    def none_of_these(self, path: str) -> None:
        """Record that a photo shows none of the classes.

        Raises:
            InputError, DataError: as `label`.
        """
        self._add(self.none_path, COLUMNS[:1], {"path": path})

    def undo(self, path: str) -> None:
        """Remove the decision about a photo, if there is one.

        Raises:
            DataError: a file cannot be read or written.
        """
        with locked(self.path.parent):
            for file, columns in ((self.path, COLUMNS), (self.none_path, COLUMNS[:1])):
                table = _read(file, columns)
                rows = [row for row in table.rows if row["path"] != path]
                if len(rows) < len(table.rows):
                    _replace(file, Table(table.columns, rows))

    def _add(self, file: Path, columns: tuple[str, ...], row: dict[str, str]) -> None:
        with locked(self.path.parent):
            decided = self.read()
            if row["path"] in decided:
                label = decided[row["path"]]
                shown = "none of the classes" if label is None else repr(label)
                raise InputError(f"{row['path']} is already decided: {shown}", code="decided")
            if not (self.path.parent / row["path"]).is_file():
                raise InputError(
                    f"{row['path']} is gone: a more interesting photo has replaced it, or someone removed it", code="gone"
                )
            table = _read(file, columns)
            _replace(file, Table(table.columns, [*table.rows, row]))


def check_label(label: str) -> str:
    """A class name as people type it, without surrounding blanks.

    Raises:
        InputError: it is empty, too long, or not one line of text.
    """
    label = label.strip()
    if not label or len(label) > MAX_LABEL or not label.isprintable():
        raise InputError(f"a class name is one line of 1 to {MAX_LABEL} characters, got {label[:50]!r}", code="label_invalid")
    return label


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder's decisions; other processes and threads wait.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}; labels are written there", code="unwritable") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path, columns: tuple[str, ...]) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Table(list(columns), [])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", code="unreadable") from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restval="")
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}; repair it or move it away", code="csv_invalid") from error
    found = list(reader.fieldnames or [])
    if missing := [column for column in columns if column not in found]:
        raise DataError(
            f"{path} has no column {missing[0]!r}; expected {','.join(columns)}, separated by commas: save it that way again",
            code="csv_invalid",
        )
    if broken := next((number for number, row in enumerate(rows, 2) if None in row), None):
        raise DataError(f"{path}, row {broken}: more fields than columns; repair it", code="csv_invalid")
    return Table(found, rows)


def _replace(path: Path, table: Table) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, table.columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        replace_file(path, text.getvalue().encode(), mode)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; it is as before", code="unwritable") from error


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically and durably.

    Args:
        path: the file to replace or create.
        data: its new content.
        mode: its permissions; by default only its owner can read it.

    Raises:
        OSError: it is as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # one at a time in a process, by the callers' locks
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
