"""Find the image files of a data set, in each layout that it may have.

    source = find_source("photos/", Path("artifacts"))
    for file in source.files: print(file.name, file.label, file.given)

Layouts: `digits`, the embedded data; a folder, read as `pipeline.sources.layout` describes; a CSV file, read by
`pipeline.sources.csv_table`. All give the same kind of list, so that later steps do not depend on the layout.

Invariant: the list of classes is fixed here, once for all splits. Files that are rejected later do not change it.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgeline.pipeline.config import PrepareConfig
from edgeline.pipeline.names import Split
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.sources.csv_table import DELIMITERS, read_table
from edgeline.pipeline.sources.digits import write_digits
from edgeline.pipeline.sources.file_walk import (
    IGNORED,
    OUTPUT,
    Tree,
    WalkRules,
    list_folder,
    printable_name,
    read_tree,
)
from edgeline.pipeline.sources.image_extensions import extension, is_named_like_an_image
from edgeline.pipeline.sources.labels import check_known, check_names, summarize
from edgeline.pipeline.sources.layout import Reading, find_splits, hidden_with_images, read_layout
from edgeline.serve.errors import DataError

Layout = Literal["digits", "top", "leaf", "splits", "csv"]

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
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
    attributes: tuple[tuple[str, str], ...] = ()
    """Name and value of the other columns of a CSV file, by which the evaluation is sliced."""


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
    findings: tuple[Finding, ...] = ()
    """How the data was understood, and what was not read."""
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


def find_source(data: str, artifacts: Path, settings: PrepareConfig = PrepareConfig()) -> Source:
    """Find the files of a data set.

    Args:
        data: as in `PipelineConfig.data`. For a folder with the name digits, use `./digits`.
        artifacts: folder that edgeline writes to; never read as data.
        settings: the layout, and what to leave out.

    Raises:
        DataError: the data does not exist, can be read in several ways, or its classes cannot be used.
    """
    # A shell expands `--data ~/photos` but not `--data=~/photos`, and nothing expands it in a configuration file.
    source = _find(os.path.expanduser(data) if not os.path.lexists(data) else data, artifacts, settings)
    for labels in settings.labels:
        source = with_labels(source, Path(os.path.expanduser(labels)))
    if printable_name(source.root) != source.root:
        raise DataError(f"{printable_name(source.root)} is not a UTF-8 path; rename the folder", code="name_not_utf8")
    if len(source.labels) < 2:
        raise DataError(_one_class(source), code="need_two_classes")
    check_names(source.labels)
    return source


def with_labels(source: Source, path: Path) -> Source:
    """Add the photos of a CSV file of labels to a data set; nothing is written, and no file is copied.

    Raises:
        DataError: the file cannot be read, or has a column of splits.
    """
    if not path.is_file():
        raise DataError(
            f"{path} of prepare.labels does not exist; `edgeline label` writes such a file, see docs/label.md",
            code="labels_missing",
        )
    table = read_table(path)
    if any(row.given for row in table.rows):
        raise DataError(
            f"{path} has splits; in files of prepare.labels they are not used: remove the column {table.columns['split']!r}",
            code="labels_with_splits",
        )
    root = os.path.realpath(path.parent)
    added = [
        SourceFile(
            name=_relative(os.path.join(root, row.name), source.root),
            label=row.label,
            given="train" if source.given else None,
            group=row.group,
            attributes=row.attributes,
        )
        for row in table.rows
    ]
    present = {(file.name, file.label) for file in source.files}
    added = [file for file in added if (file.name, file.label) not in present]
    new = sorted({file.label for file in added} - set(source.labels))
    message = f"{path}: {len(added):,} labeled photos added" + (f"; new classes: {summarize(map(repr, new))}." if new else ".")
    return replace(
        source,
        labels=tuple(sorted({*source.labels, *new})),
        files=tuple(sorted([*source.files, *added], key=lambda file: file.name)),
        findings=(*source.findings, Finding(code="labels_added", message=message, level="note")),
    )


def _relative(path: str, root: str) -> str:
    """A file's name in a source: relative to its root, or absolute outside it."""
    return os.path.relpath(path, root) if path.startswith(root.rstrip(os.sep) + os.sep) else path


def _find(data: str, artifacts: Path, settings: PrepareConfig) -> Source:
    if data == "digits":
        return _in_folder(write_digits(artifacts / "data" / "digits"), "digits", settings, artifacts)
    # Not Path.is_dir(), which raises if a parent folder is not accessible.
    if os.path.isdir(data):
        if settings.layout == "csv":
            raise DataError(f"{data} is a folder; --layout csv needs a CSV file", code="layout_unknown")
        return _in_folder(Path(data), None, settings, artifacts)
    if data.lower().endswith(".csv") and os.path.isfile(data):
        if settings.layout not in ("auto", "csv"):
            raise DataError(f"{data} is a CSV file; --layout {settings.layout} needs a folder", code="layout_unknown")
        return _in_table(Path(data))
    if data.lower().endswith(ARCHIVES):
        raise DataError(f"{data} is an archive; extract it and use the folder", code="layout_unknown")
    if os.path.lexists(data):
        raise DataError(f"{data} is neither a folder nor a CSV file; expected {LAYOUTS}", code="layout_unknown")
    raise DataError(f"{data} does not exist (in {Path.cwd()}); expected {LAYOUTS}", code="data_missing")


def _in_folder(folder: Path, layout: Layout | None, settings: PrepareConfig, artifacts: Path) -> Source:
    root = os.path.realpath(folder)
    rules = WalkRules(
        ignore=settings.ignore,
        include_hidden=settings.include_hidden,
        follow_links=settings.follow_links,
        output=os.path.realpath(artifacts),
    )
    wanted = "top" if layout == "digits" else settings.layout
    top = read_tree(root, rules, only=())
    folders = {name: _contains_folder(os.path.join(root, name)) for name in top.unread}
    splits = find_splits(root, folders, wanted)
    tree = read_tree(root, rules, only=list(splits) if splits else None)
    reading = read_layout(tree, splits, wanted)
    if splits:
        check_known({split: set(labels) for split, labels in reading.labels.items()})
    rejected = [Rejected(name=printable_name(name), code=problem.code, message=str(problem)) for name, problem in tree.problems]
    return Source(
        layout=layout or _layout(reading),
        root=root,
        labels=tuple(sorted(reading.counts())),
        files=tuple(SourceFile(name=name, label=place.label, given=place.given) for name, place in reading.places.items()),
        rejected=tuple(sorted(rejected, key=lambda file: file.name)),
        ignored=len(reading.beside),
        findings=tuple(_folder_findings(tree, reading, settings)),
        given=frozenset(splits.values()),
    )


def _layout(reading: Reading) -> Layout:
    assert reading.layout in ("top", "leaf", "splits")
    return reading.layout


def _contains_folder(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False


def _folder_findings(tree: Tree, reading: Reading, settings: PrepareConfig) -> Iterator[Finding]:
    skipped = Counter(skip.reason for skip in tree.skipped if skip.reason != "hidden")
    first: dict[str, str] = {}
    for skip in tree.skipped:
        first.setdefault(skip.reason, skip.name)
    if tree.unread:
        message = f"Not read, as not one of the splits: {summarize(f'{name}/' for name in tree.unread)}."
        yield Finding(code="folders_unread", message=message)
    if output := skipped.pop(OUTPUT, 0):
        message = f"Not read, because edgeline wrote it: {_some(output, first[OUTPUT])}."
        yield Finding(code="output_skipped", message=message, level="note")
    if ignored := skipped.pop(IGNORED, 0):
        message = f"Left out by prepare.ignore: {_some(ignored, first[IGNORED])}."
        yield Finding(code="ignored", message=message, level="note")
    if unused := [pattern for pattern in settings.ignore if pattern not in tree.used_patterns]:
        yield Finding(code="ignore_unused", message=f"prepare.ignore matches nothing: {summarize(map(repr, unused))}.")
    if skipped:
        kinds = summarize(f"{_some(count, first[origin])} ({origin})" for origin, count in sorted(skipped.items()))
        yield Finding(code="leftovers_skipped", message=f"Skipped, as left by systems and tools: {kinds}.", level="note")
    if hidden := hidden_with_images(tree):
        message = (
            f"Not read, because the name starts with a dot: {summarize(hidden)}; "
            "rename it, or set prepare.include_hidden to true."
        )
        yield Finding(code="hidden_skipped", message=message)
    if beside := [name for name in reading.beside if is_named_like_an_image(name)]:
        message = f"Images next to the class folders have no class and are not used: {summarize(beside, 3)}."
        yield Finding(code="images_without_class", message=message)
    for name in reading.beside:
        if extension(name) == ".csv" and (lost := _columns_of(os.path.join(tree.root, name))):
            message = (
                f"{name} is not read, because the folders give the classes; it lists images, with {summarize(lost)}. "
                f"To use them: --data {os.path.join(tree.root, name)}"
            )
            yield Finding(code="table_unread", message=message)
    if reading.layout == "leaf":
        yield from _merged_leaves(reading)


def _columns_of(path: str) -> list[str]:
    """What a table that lists images has besides paths and labels; nothing if it is no such table."""
    try:
        table = read_table(Path(path))
    except DataError:
        return []
    meanings = [meaning for meaning in ("group", "split") if meaning in table.columns]
    return [f"the column {table.columns[meaning]!r}" for meaning in meanings]


def _merged_leaves(reading: Reading) -> Iterator[Finding]:
    folders: dict[str, set[str]] = defaultdict(set)
    for name, place in reading.places.items():
        folders[place.label].add(f"{place.given or ''}:{os.path.dirname(name)}")
    splits = {place.given for place in reading.places.values()}
    merged = [f"{label!r} from {len(own):,} folders" for label, own in sorted(folders.items()) if len(own) > len(splits)]
    if merged:
        yield Finding(
            code="leaves_merged", message=f"Folders of the same name are one class: {summarize(merged)}.", level="note"
        )


def _some(count: int, first: str) -> str:
    return first if count == 1 else f"{first} and {count - 1:,} more"


def _in_table(path: Path) -> Source:
    table = read_table(path)
    files = sorted(
        (
            SourceFile(name=row.name, label=row.label, given=row.given, group=row.group, attributes=row.attributes)
            for row in table.rows
        ),
        key=lambda file: file.name,
    )
    given = frozenset(file.given for file in files if file.given)
    by_split: dict[Split | None, set[str]] = defaultdict(set)
    for file in files:
        by_split[file.given].add(file.label)
    if given:
        if "train" not in given:
            raise DataError(f"{path}: no row is in the split train; found {summarize(sorted(given))}", code="train_missing")
        check_known(by_split)
    findings = []
    if not table.is_standard:
        columns = ", ".join(f"{name!r} as {meaning}" for meaning, name in table.columns.items() if name != meaning)
        message = f"{path.name}: separated by {DELIMITERS[table.delimiter]}" + (
            f"; columns read: {columns}." if columns else "."
        )
        findings.append(Finding(code="csv_columns", message=message, level="note"))
    if table.repaired:
        message = (
            "Paths found only with forward slashes or without surrounding blanks: "
            f"{_some(len(table.repaired), repr(table.repaired[0]))}."
        )
        findings.append(Finding(code="csv_paths_repaired", message=message))
    return Source(
        layout="csv",
        root=os.path.realpath(path.parent),
        labels=tuple(sorted({file.label for file in files})),
        files=tuple(files),
        findings=tuple(findings),
        given=given,
    )


def _one_class(source: Source) -> str:
    message = f"{source.root} has only the class {source.labels[0]!r}" if source.labels else f"{source.root} lists no image"
    message += "; a classifier needs at least two classes"
    if hidden := [finding.message for finding in source.findings if finding.code == "hidden_skipped"]:
        message += f". {hidden[0].removesuffix('.')}"
    if source.layout == "top" and (inner := _folders_in(os.path.join(source.root, source.labels[0]))):
        folder = os.path.join(source.root, source.labels[0])
        message += f"; if {summarize(inner)} are the classes, use the folder {folder} or --layout leaf"
    return message


def _folders_in(folder: str) -> list[str]:
    return [entry.name for entry in list_folder(folder) if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
