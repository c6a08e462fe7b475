"""Read a CSV file that lists images with their labels, as spreadsheets and other tools write it.

The columns are recognized by their names (`COLUMNS`), separated by commas, semicolons or tabs. A path is relative to the
file's folder or absolute; backslashes and surrounding blanks are repaired if only the repaired path exists.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeline.pipeline.names import Split
from edgeline.pipeline.sources.labels import summarize
from edgeline.pipeline.sources.layout import split_of
from edgeline.serve.errors import DataError

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "image_file",
        "img",
        "photo",
    ),
    "label": ("label", "class", "category", "class_name", "label_name", "target"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group", "group_id"),
}
"""Names of the columns, preferred ones first; upper case, blanks and dashes do not matter."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SEPARATOR_LINE = re.compile(r"sep=.\r?\n")
"""First line that Excel writes and reads."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
EXPECTED = "the first line must name the columns path,label[,split][,group], separated by commas, semicolons or tabs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An image of the table."""

    name: str
    """Relative to the table's folder, with forward slashes; absolute for a file outside it."""
    label: str
    given: Split | None
    group: str
    attributes: tuple[tuple[str, str], ...]
    """Name and value of every other column that has a name."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file's rows, and how it was read."""

    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    """The name of each column that was found, by its meaning."""
    delimiter: str
    repaired: tuple[str, ...]
    """Paths that were changed, as they are written in the file."""

    @property
    def is_standard(self) -> bool:
        """Whether the file has the documented names and commas."""
        return self.delimiter == "," and all(meaning == name for meaning, name in self.columns.items())


def read_table(path: Path) -> Table:
    """Read a CSV file.

    Raises:
        DataError: it cannot be read, has no columns with a path and a label, or rows that do not fit; all are listed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", code="unreadable") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a UTF-8 CSV file: {error}; save it as UTF-8, in a spreadsheet 'CSV UTF-8'", code="csv_invalid"
        ) from error
    text = SEPARATOR_LINE.sub("", text, count=1) if text.startswith("sep=") else text
    delimiter, columns = _header(path, text)
    root = os.path.realpath(path.parent)
    rows: list[Row] = []
    problems: list[str] = []
    repaired: list[str] = []
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            fields = {meaning: row[name] for meaning, name in columns.items()}
            if None in row or not fields["path"] or not fields["label"]:
                problems.append(f"line {reader.line_num}: expected a path and a label, and no more fields than columns")
            elif problem := _problem(fields["path"], fields.get("split")):
                problems.append(f"line {reader.line_num}: {problem}")
            else:
                found = _existing(root, fields["path"])
                repaired += [fields["path"]] * (found != fields["path"])
                others = tuple((name, row[name] or "") for name in row if name and name not in columns.values())
                rows.append(_row(root, found, fields, others))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: line {reader.line_num}: {error}", code="csv_invalid") from error
    if len({bool(row.given) for row in rows}) > 1:
        empty = sum(not row.given for row in rows)
        problems.append(f"{empty:,} of {len(rows):,} rows have no split; set it in all rows or in none")
    if problems:
        raise DataError(f"{path}: {summarize(problems)}", code="csv_invalid")
    return Table(rows=tuple(rows), columns=columns, delimiter=delimiter, repaired=tuple(repaired))


def _header(path: Path, text: str) -> tuple[str, dict[str, str]]:
    """Return the delimiter, and the name of each column by its meaning.

    Raises:
        DataError: there is no column of paths or of labels, or two columns may be meant.
    """
    for delimiter in DELIMITERS:
        try:
            names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        columns = {meaning: found for meaning in COLUMNS if (found := _columns(meaning, names))}
        if "path" not in columns or "label" not in columns:
            continue
        if double := [found for found in columns.values() if len(found) > 1]:
            raise DataError(
                f"{path}: the columns {' and '.join(map(repr, double[0]))} have the same meaning; rename or remove one",
                code="csv_invalid",
            )
        return delimiter, {meaning: found[0] for meaning, found in columns.items()}
    first = text.partition("\n")[0].strip()
    raise DataError(f"{path}: {EXPECTED}; found {repr(first[:200]) if first else 'nothing'}", code="csv_invalid")


def _columns(meaning: str, names: Iterable[str]) -> list[str]:
    """Return the columns with a meaning. The documented name takes precedence over the others."""
    known = {name: re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names}
    documented = [name for name, plain in known.items() if plain == meaning]
    return documented or [name for name, plain in known.items() if plain in COLUMNS[meaning]]


def _problem(path: str, split: str | None) -> str | None:
    if "\0" in path:
        return "the path contains a NUL character"
    if URL.match(path.strip()):
        return f"{path.strip()!r} is a URL; download the images first and list their paths"
    if split and split_of(split.strip()) is None:
        return f"split must be train, val or test, or empty in all rows, got {split!r}"
    return None


def _existing(root: str, path: str) -> str:
    """Return a path as it is written, or repaired if it exists only then."""
    for candidate in (path, path.strip(), path.replace("\\", "/"), path.strip().replace("\\", "/")):
        if os.path.lexists(os.path.join(root, candidate)):
            return candidate
    return path


def _row(root: str, path: str, fields: Mapping[str, str | None], attributes: tuple[tuple[str, str], ...]) -> Row:
    absolute = Path(root, path)
    name = str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)
    split = (fields.get("split") or "").strip()
    return Row(
        name=name,
        label=fields["label"] or "",
        given=split_of(split),
        group=fields.get("group") or "",
        attributes=attributes,
    )
