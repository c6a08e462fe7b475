"""Find the image files of a data set, in each layout that it may have.

    source = find_source("photos/", Path("artifacts"))
    for file in source.files: print(file.name, file.label, file.given)

Layouts: `digits`, the embedded data; a folder of class folders; a folder with `train/` and `val/` or `test/` or both, each
with class folders; a CSV file with the columns `path,label[,split][,group]`. All give the same kind of list, so that later
steps do not depend on the layout.

Invariant: the list of classes is fixed here, once for all splits. Files that are rejected later do not change it.
"""

import csv
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeline.pipeline.data.digits import write_digits
from edgeline.pipeline.data.file_walk import printable_name, scan_root, walk
from edgeline.pipeline.data.labels import check_known, check_names, summarize
from edgeline.pipeline.data.samples import SPLITS, Split
from edgeline.serve.errors import DataError

Layout = Literal["digits", "folders", "splits", "csv"]

SPLIT_NAMES: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of the splits in folders and CSV files, in lower case."""

LAYOUTS = (
    "a folder of class folders with images, a folder with train/ and val/ or test/ folders of these, "
    "or a .csv file with the columns path,label[,split][,group]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file that is expected to be an image."""

    name: str
    """Relative to the source's root, with forward slashes; absolute for a file that a CSV file lists outside it."""
    label: str
    given: Split | None = None
    """The split that the data assigns to it."""
    group: str = ""
    """The user's group, empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A file that is left out, and the reason."""

    name: str
    code: str
    """`ignored` for a file that is not meant to be an image, otherwise the stable code of its error."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a data set, before any is opened."""

    layout: Layout
    root: str
    """Absolute."""
    labels: tuple[str, ...]
    """All class names, sorted."""
    files: tuple[SourceFile, ...]
    """Sorted by name."""
    rejected: tuple[Rejected, ...] = ()
    ignored: int = 0
    """Number of files next to the class folders. They are not part of the data or its fingerprint."""
    warnings: tuple[str, ...] = ()
    given: frozenset[Split] = field(default_factory=frozenset)
    """The splits that the data defines; empty if it defines none."""

    def path(self, file: SourceFile) -> str:
        """Return the absolute path of a file."""
        return os.path.join(self.root, file.name)

    def role(self, given: Split | None) -> Split | None:
        """Return the split that a split of the data is used as.

        With only `train` and `val`, `val` becomes the test split, and a validation split is carved from `train`: the split
        that selects the best epoch and the temperature cannot serve as a test.
        """
        return "test" if given == "val" and "test" not in self.given else given


def find_source(data: str, artifacts: Path) -> Source:
    """Find the files of a data set.

    Args:
        data: as in `PipelineConfig.data`. For a folder with the name digits, use `./digits`.
        artifacts: folder to write the embedded data into.

    Raises:
        DataError: the data does not exist, has no known layout, or its classes cannot be used.
    """
    source = _by_layout(data, artifacts)
    if printable_name(source.root) != source.root:
        raise DataError(f"{printable_name(source.root)} is not a UTF-8 path; rename the folder", code="name_not_utf8")
    if len(source.labels) < 2:
        raise DataError(_one_class(source), code="need_two_classes")
    check_names(source.labels)
    return source


def _by_layout(data: str, artifacts: Path) -> Source:
    if data == "digits":
        return _folders(write_digits(artifacts / "data" / "digits"), "digits")
    # Not Path.is_dir(), which raises if a parent folder is not accessible.
    if os.path.isdir(data):
        return _folders(Path(data), "folders")
    if data.lower().endswith(".csv") and os.path.isfile(data):
        return _csv(Path(data))
    if os.path.lexists(data):
        raise DataError(f"{data} is neither a folder nor a CSV file; expected {LAYOUTS}", code="layout_unknown")
    raise DataError(f"{data} does not exist (in {Path.cwd()}); expected {LAYOUTS}", code="data_missing")


def _folders(folder: Path, layout: Layout) -> Source:
    root = os.path.realpath(folder)
    entries = scan_root(root)
    found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    splits = _split_folders(root, found)
    finder = _Finder(root)
    if not splits:
        finder.add_classes(root, entries, None)
        return finder.source(layout, frozenset())
    finder.report_other_entries(entries)
    for name, given in splits.items():
        finder.add_classes(os.path.join(root, name), scan_root(os.path.join(root, name)), given)
    if unused := [f"{name}/" for name in found if name not in splits]:
        finder.warnings.append(f"Not read, as not one of the splits: {summarize(unused)}.")
    return finder.source("splits", frozenset(splits.values()))


def _split_folders(root: str, folders: list[str]) -> dict[str, Split]:
    """Return the split of each folder, or nothing if the folders are classes."""
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    if "train" not in splits.values():
        if len(splits) == len(folders) and splits:
            raise DataError(f"{root} contains {summarize(splits)} but no train folder; add train/", code="train_missing")
        return {}
    if len(splits) == 1:
        return {}  # a class with the name train
    for split in SPLITS:
        if len(same := [name for name in splits if splits[name] == split]) > 1:
            raise DataError(f"{root}: {' and '.join(same)} both mean {split}; keep one of them", code="split_ambiguous")
    return splits


class _Finder:
    """Collects the files below a root."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.labels: dict[Split | None, set[str]] = defaultdict(set)
        self.files: list[SourceFile] = []
        self.rejected: list[Rejected] = []
        self.ignored = 0
        self.warnings: list[str] = []

    def add_classes(self, folder: str, entries: list[os.DirEntry[str]], given: Split | None) -> None:
        self.report_other_entries(entries)
        classes = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        if not classes:
            raise DataError(
                f"{folder} contains {_describe(entries)}; expected one folder for each class, with the class's name and images",
                code="no_class_folders",
            )
        for entry in classes:
            self.labels[given].add(entry.name)
            for path, problem in walk(entry.path, self.root):
                if problem is None:
                    self.files.append(SourceFile(name=self._name(path), label=entry.name, given=given))
                else:
                    self._reject(path, problem.code, str(problem))

    def report_other_entries(self, entries: list[os.DirEntry[str]]) -> None:
        """Report links to folders, and count the files next to the folders."""
        for entry in entries:
            if entry.is_symlink() and os.path.isdir(entry.path):
                self._reject(entry.path, "link_to_folder", "links to folders are not followed; copy the folder here")
            elif not entry.is_dir(follow_symlinks=False):
                self.ignored += 1

    def source(self, layout: Layout, given: frozenset[Split]) -> Source:
        labels = set().union(*self.labels.values())
        if given:
            check_known(self.labels)
        return Source(
            layout=layout,
            root=self.root,
            labels=tuple(sorted(labels)),
            files=tuple(sorted(self.files, key=lambda file: file.name)),
            rejected=tuple(sorted(self.rejected, key=lambda file: file.name)),
            ignored=self.ignored,
            warnings=tuple(self.warnings),
            given=given,
        )

    def _reject(self, path: str, code: str, message: str) -> None:
        self.rejected.append(Rejected(name=printable_name(self._name(path)), code=code, message=message))

    def _name(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")


def _describe(entries: list[os.DirEntry[str]]) -> str:
    links = [entry.name for entry in entries if entry.is_symlink() and os.path.isdir(entry.path)]
    if links:
        return f"no folder but {summarize(links)}, and links to folders are not followed"
    return f"{len(entries):,} files and no folder" if entries else "nothing"


def _csv(path: Path) -> Source:
    files = sorted(_rows(path), key=lambda file: file.name)
    given = frozenset(file.given for file in files if file.given)
    by_split: dict[Split | None, set[str]] = defaultdict(set)
    for file in files:
        by_split[file.given].add(file.label)
    if given:
        if "train" not in given:
            raise DataError(f"{path}: no row is in the split train; found {summarize(sorted(given))}", code="train_missing")
        check_known(by_split)
    labels = sorted({file.label for file in files})
    return Source(layout="csv", root=os.path.realpath(path.parent), labels=tuple(labels), files=tuple(files), given=given)


def _rows(path: Path) -> list[SourceFile]:
    root = os.path.realpath(path.parent)
    problems: list[str] = []
    files: list[SourceFile] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise DataError(
                    f"{path}: the first line must name the columns path,label[,split][,group], separated by commas; "
                    f"found {summarize(map(repr, columns)) or 'nothing'}",
                    code="csv_invalid",
                )
            for row in reader:
                if problem := _row_problem(row):
                    problems.append(f"line {reader.line_num}: {problem}")
                else:
                    files.append(_row(row, root))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", code="unreadable") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a UTF-8 CSV file: {error}", code="csv_invalid") from error
    if len({bool(file.given) for file in files}) > 1:
        empty = sum(not file.given for file in files)
        problems.append(f"{empty:,} of {len(files):,} rows have no split; set it in all rows or in none")
    if problems:
        raise DataError(f"{path}: {summarize(problems)}", code="csv_invalid")
    return files


def _row_problem(row: dict[str, str | None]) -> str | None:
    if None in row or not row["path"] or not row["label"]:
        return "expected a path and a label, and no more fields than columns"
    if "\0" in row["path"]:
        return "the path contains a NUL character"
    if (split := row.get("split")) and split.lower() not in SPLIT_NAMES:
        return f"split must be train, val or test, or empty in all rows, got {split!r}"
    return None


def _row(row: dict[str, str | None], root: str) -> SourceFile:
    path, label = Path(root, row["path"] or ""), row["label"] or ""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    given = SPLIT_NAMES[row["split"].lower()] if row.get("split") else None  # type: ignore[union-attr]
    return SourceFile(name=name, label=label, given=given, group=row.get("group") or "")


def _one_class(source: Source) -> str:
    message = f"{source.root} has only the class {source.labels[0]!r}" if source.labels else f"{source.root} lists no image"
    message += "; a classifier needs at least two classes"
    if links := [file.name for file in source.rejected if file.code == "link_to_folder"]:
        message += f" (links to folders are not followed: {summarize(links)})"
    if source.layout == "folders" and (inner := _folders_in(Path(source.root, source.labels[0]))):
        message += f"; if {summarize(inner)} are the classes, use the folder {Path(source.root, source.labels[0])}"
    return message


def _folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in scan_root(str(folder)) if entry.is_dir(follow_symlinks=False)]
