"""List the images to score: the files of a folder at any depth, or those that a CSV file names."""

import csv
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgeline.pipeline.sources.csv_table import COLUMNS, DELIMITERS
from edgeline.pipeline.sources.file_walk import WalkRules, read_tree
from edgeline.serve.errors import DataError

FEWEST, TYPICAL, MOST = 64, 64, 256
"""Images in a shard."""


class Entry(NamedTuple):
    """A file to score."""

    name: str
    """Relative to the root, with forward slashes; absolute for a file that a CSV file names outside it."""
    code: str = ""
    """Why it cannot be read, if the listing found that already."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files to score."""

    root: str
    """Absolute."""
    entries: tuple[Entry, ...]
    """Sorted by name."""


def list_images(source: Path, output: Path) -> Listing:
    """List the files of a folder, or those that a CSV file names in its column `path`.

    Hidden files and what systems and tools leave are left out.

    Args:
        source: the folder, or a file with the extension `.csv`.
        output: folder that is not listed, if it lies in the source.

    Raises:
        DataError: the source cannot be read, or lists no file.
    """
    if source.is_dir():
        tree = read_tree(os.path.realpath(source), WalkRules(output=os.path.realpath(output)))
        problems = [Entry(name, problem.code, str(problem)) for name, problem in tree.problems]
        listing = Listing(tree.root, tuple(sorted([*map(Entry, tree.files), *problems])))
    elif source.suffix.lower() == ".csv" and source.is_file():
        names = sorted(dict.fromkeys(_names_in_table(source)))
        listing = Listing(os.path.realpath(source.parent), tuple(Entry(name.replace(os.sep, "/")) for name in names))
    else:
        found = "is neither" if os.path.lexists(source) else "does not exist"
        raise DataError(f"{source} {found}; expected a folder of images, or a .csv file with a column path", code="no_source")
    if not listing.entries:
        raise DataError(f"{source} has no image; expected JPEG, PNG, WebP, GIF or BMP files", code="no_images")
    return listing


def divide_by_name(entries: Iterable[Entry]) -> Iterator[tuple[Entry, ...]]:
    """Divide entries into shards whose ends depend on the names alone, so that a new file changes its own shard only."""
    shard: list[Entry] = []
    for entry in entries:
        shard.append(entry)
        if len(shard) == MOST or (len(shard) >= FEWEST and zlib.crc32(entry.name.encode()) % TYPICAL == 0):
            yield tuple(shard)
            shard = []
    if shard:
        yield tuple(shard)


def _names_in_table(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a UTF-8 CSV file: {error}", code="unreadable") from error
    for delimiter in DELIMITERS:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = {name.strip().lower(): name for name in reader.fieldnames or () if name}
        if column := next((columns[name] for name in COLUMNS["path"] if name in columns), None):
            yield from (row[column] for row in reader if row[column])
            return
    raise DataError(f"{path} has no column path; its first line must name one", code="csv_invalid")
