"""Add photos to a data set: copies in its class folders, or rows in its CSV file.

    additions = plan_additions(config, {"wren": [Path("new/")]})
    undo = apply_additions(additions)

Every photo is read before anything is written. A photo that the class already has, by content, is not added again, so a call
that was interrupted is completed by the same call. `undo` leaves the data as it was.
"""

import csv
import hashlib
import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.names import SPLITS
from edgeline.pipeline.runs.atomic_files import file_digest, replace_file
from edgeline.pipeline.sources.csv_table import read_table
from edgeline.pipeline.sources.discovery import Source, find_source
from edgeline.pipeline.sources.image_extensions import is_named_like_an_image
from edgeline.pipeline.sources.labels import check_names, summarize
from edgeline.serve.errors import ConfigError, DataError, ImageError
from edgeline.serve.preprocess import Limits, decode_image


@dataclass(frozen=True, kw_only=True, slots=True)
class Addition:
    """A photo that will be added to a class."""

    source: Path
    label: str
    sha256: str
    target: Path
    """The copy; for a CSV file, the photo itself."""


@dataclass(frozen=True, kw_only=True)
class Additions:
    """What will be added to a data set, and what will not."""

    table: Path | None
    """The CSV file that gets a row for each photo; None if the photos are copied."""
    photos: tuple[Addition, ...]
    labels: tuple[str, ...]
    """The classes that photos were given for."""
    new_labels: tuple[str, ...]
    """Those of them that the data does not have yet."""
    known_labels: tuple[str, ...]
    """The classes of the data."""
    present: Mapping[str, int]
    """How many of the photos a class already has, by content."""
    unreadable: tuple[str, ...]
    """Files that are not added, each with the reason."""

    def lines(self) -> list[str]:
        """What will be added, for people."""
        lines = []
        for label in self.labels:
            targets = [photo.target for photo in self.photos if photo.label == label]
            kind = "new class" if label in self.new_labels else "class"
            near = get_close_matches(label, self.known_labels, n=1, cutoff=0.8) if label in self.new_labels else []
            kind += f" (not {near[0]!r}?)" if near else ""
            where = f"rows of {self.table}" if self.table else f"copies in {targets[0].parent}/" if targets else ""
            lines.append(f"{kind} {label!r}: {_photos(len(targets))} added" + (f" as {where}" if targets else ""))
            if self.present[label]:
                lines[-1] += f", {_photos(self.present[label])} already in the data"
        return lines + ([f"not added: {summarize(self.unreadable, 3)}"] if self.unreadable else [])


def parse_classes(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Parse `class=DIR` arguments; a class may have several folders.

    Raises:
        ConfigError: an argument has another form.
    """
    folders: dict[str, list[Path]] = {}
    for argument in arguments:
        label, equals, folder = argument.partition("=")
        if not (label.strip() and equals and folder):
            raise ConfigError(f"{argument!r} is not class=DIR, such as wren=new-photos/", code="class_argument")
        folders.setdefault(label.strip(), []).append(Path(folder).expanduser())
    return folders


def plan_additions(config: PipelineConfig, folders: Mapping[str, Sequence[Path]]) -> Additions:
    """Read the photos of some folders, and decide what to add to a configuration's data. Nothing is written.

    Args:
        config: of the run whose data is extended.
        folders: by class.

    Raises:
        DataError: the data cannot be extended, or there is no photo to add, or one already belongs to another class.
    """
    if config.data == "digits":
        raise DataError("the embedded digits cannot be extended; run on a folder of your own", code="data_fixed")
    source = find_source(config.data, Path(config.artifacts), config.prepare)
    check_names({*source.labels, *folders})
    new = tuple(sorted(folders.keys() - set(source.labels)))
    if source.layout != "csv" and (invalid := [label for label in new if not _is_folder_name(label)]):
        raise DataError(f"class {invalid[0]!r} cannot be the name of a folder; choose another name", code="label_invalid")
    limits = Limits(max_bytes=config.prepare.max_bytes, max_pixels=config.prepare.max_pixels)
    read, unreadable = _read_photos(folders, limits)
    there = _known(source, read)
    known = dict(there)
    photos: list[Addition] = []
    for path, label, sha256 in read:
        if known.setdefault(sha256, label) != label:
            raise DataError(
                f"{path} is in the data, or among the new photos, as {known[sha256]!r} too; decide on one class",
                code="label_conflict",
            )
        photos.append(Addition(source=path, label=label, sha256=sha256, target=path))
    added = {photo.sha256: photo for photo in reversed(photos) if photo.sha256 not in there}
    present = Counter(photo.label for photo in photos if photo.sha256 in there)
    table = Path(os.path.expanduser(config.data)) if source.layout == "csv" else None
    chosen = sorted(added.values(), key=lambda photo: str(photo.source))
    return Additions(
        table=table,
        photos=tuple(chosen) if table else _with_targets(source, chosen),
        labels=tuple(folders),
        new_labels=new,
        known_labels=source.labels,
        present=present,
        unreadable=tuple(unreadable),
    )


def apply_additions(additions: Additions) -> Callable[[], None]:
    """Write the additions.

    Returns:
        A function that takes them back: it removes the copies, and the folders that were made for them, or restores the CSV
        file, unless someone has changed them since.

    Raises:
        DataError: the data cannot be written; it is as before.
    """
    try:
        return _add_rows(additions.table, additions) if additions.table else _copy(additions.photos)
    except OSError as error:
        raise DataError(
            f"{error.filename or additions.table}: {error.strerror}; the data is as before", code="data_unwritable"
        ) from error


def _copy(photos: Sequence[Addition]) -> Callable[[], None]:
    made: list[Path] = []
    copied: list[Addition] = []

    def undo() -> None:
        for photo in copied:
            if photo.target.is_file() and file_digest(photo.target) == photo.sha256:
                photo.target.unlink()
        for folder in reversed(made):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    try:
        for photo in photos:
            if not photo.target.parent.is_dir():
                photo.target.parent.mkdir()
                made.append(photo.target.parent)
            replace_file(photo.target, lambda path, photo=photo: shutil.copyfile(photo.source, path))  # type: ignore[misc]
            copied.append(photo)
    except BaseException:
        undo()
        raise
    return undo


def _add_rows(path: Path, additions: Additions) -> Callable[[], None]:
    before = path.read_bytes()
    table = read_table(path)
    text = before.decode("utf-8-sig")
    first = text.removeprefix("sep=" + table.delimiter).lstrip("\r\n") if text.startswith("sep=") else text
    header = next(csv.reader(io.StringIO(first, newline=""), delimiter=table.delimiter))
    ending = "\r\n" if "\r\n" in text else "\n"
    rows = io.StringIO(newline="")
    writer = csv.DictWriter(rows, header, restval="", delimiter=table.delimiter, lineterminator=ending)
    given = {table.columns["split"]: SPLITS[0]} if any(row.given for row in table.rows) else {}
    for photo in additions.photos:
        writer.writerow({table.columns["path"]: os.path.abspath(photo.source), table.columns["label"]: photo.label, **given})
    after = before + (b"" if before.endswith(b"\n") else ending.encode()) + rows.getvalue().encode()
    replace_file(path, lambda temporary: _write_like(temporary, after, path))

    def undo() -> None:
        if path.read_bytes() == after:
            replace_file(path, lambda temporary: _write_like(temporary, before, path))

    return undo


def _write_like(temporary: Path, data: bytes, original: Path) -> None:
    temporary.write_bytes(data)
    shutil.copymode(original, temporary)


def _read_photos(folders: Mapping[str, Sequence[Path]], limits: Limits) -> tuple[list[tuple[Path, str, str]], list[str]]:
    """Path, class and digest of every photo in the folders, and the files that are not, each with the reason."""
    read: list[tuple[Path, str, str]] = []
    unreadable: list[str] = []
    for label, given in folders.items():
        before, problems = len(read), list[str]()
        for path in _files(given):
            try:
                data = path.read_bytes()
                decode_image(data, limits=limits)
                read.append((path, label, hashlib.sha256(data).hexdigest()))
            except (ImageError, OSError) as error:
                problems += [f"{path}: {error}"] if is_named_like_an_image(path.name) else []
        if len(read) == before:
            listed = f" ({summarize(problems, 2)})" if problems else ""
            raise DataError(
                f"no readable image of {label!r} in {summarize(map(str, given))}{listed}; give a folder with photos",
                code="no_images",
            )
        unreadable += problems
    return read, unreadable


def _files(folders: Iterable[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
            raise DataError(f"{folder} {problem}; expected a folder with photos of one class", code="data_missing")
    found = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.parts[-1:]))


def _known(source: Source, read: Sequence[tuple[Path, str, str]]) -> dict[str, str]:
    """The class of those new photos that are in the data, by digest. Only files of the same size can have the same content."""
    sizes = {path.stat().st_size for path, _, _ in read}
    wanted = {sha256 for _, _, sha256 in read}
    known = {}
    for file in source.files:
        path = Path(source.path(file))
        if path.is_file() and path.stat().st_size in sizes and (digest := file_digest(path)) in wanted:
            known[digest] = file.label
    return known


def _with_targets(source: Source, photos: Sequence[Addition]) -> tuple[Addition, ...]:
    """The photos with the file that each is copied to; names that are taken get a part of the digest."""
    taken: set[Path] = set()
    placed = []
    for photo in photos:
        folder = _folder(source, photo.label)
        target = folder / photo.source.name
        if target in taken or os.path.lexists(target):
            target = folder / f"{photo.source.stem}-{photo.sha256[:12]}{photo.source.suffix}"
        taken.add(target)
        placed.append(replace(photo, target=target))
    return tuple(placed)


def _folder(source: Source, label: str) -> Path:
    """The folder of a class, of its training images if the data has splits. A new class gets one beside the others."""
    inside = [file for file in source.files if not os.path.isabs(file.name)]  # files of prepare.labels may lie elsewhere
    training = [file for file in inside if file.given in (None, "train")]
    own = Counter(os.path.dirname(file.name) for file in training if file.label == label)
    if own:
        return Path(source.root, own.most_common(1)[0][0])
    beside = Counter(os.path.dirname(os.path.dirname(file.name)) for file in training)
    return Path(source.root, beside.most_common(1)[0][0], label)


def _is_folder_name(label: str) -> bool:
    return label not in (".", "..") and not label.startswith(".") and not {"/", "\\", "\0"} & set(label)


def _photos(count: int) -> str:
    return f"{count:,} photo{'s' * (count != 1)}"
