"""The folder in which a server keeps photos to be labeled.

    inbox = Inbox.create(Path("inbox"), consent="sign at the door, approved by A. Smith", limits=InboxLimits())
    inbox.add(photo, note)
    waiting(Path("inbox"))              # Waiting(photos=41, size_bytes=9_200_000)

    inbox.json              what the folder is, why photos may be kept, and the classes of the model
    <sha256>.jpg            a photo without metadata, named by its content
    <sha256>.json           its prediction, and why it was kept
    labels.csv, labels.none.csv     what people decided, see `serve.inbox.decisions`

Invariants: a photo that has its name is complete and its note is there; the photos that wait for a label stay within the
limits; a photo that was decided is never removed.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from edgeline.serve.errors import ConfigError, DataError
from edgeline.serve.inbox.decisions import FILE_NAME as LABELS
from edgeline.serve.inbox.decisions import LOCK, Decisions, locked, replace_file

MARKER, SCHEMA = "inbox.json", "edgeline.inbox/1"
NOTE_SCHEMA = "edgeline.inbox-photo/1"
SUFFIXES = (".jpg", ".png", ".webp")
MAX_NOTE_BYTES = 2**20

Outcome = Literal["kept", "duplicate", "less_interesting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxLimits:
    """Of the photos that wait for a label."""

    photos: int = 500
    size_bytes: int = 512 * 2**20
    """Of the photos and their notes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What is known about a photo that was kept."""

    model: str
    version: int
    predictions: tuple[tuple[str, float], ...]
    """The most likely classes with their probabilities, best first."""
    share: float
    uncertainty: float
    distance: float | None
    """These three as `serve.inbox.interest.Interest` has them."""
    embedding_C: np.ndarray | None = None
    """The photo's features, float16; None without them."""
    at: str = ""
    """When it was kept, UTC, ISO 8601."""

    def to_json(self) -> bytes:
        """Write the note; the features as base64 of little-endian float16."""
        held = asdict(self)
        del held["embedding_C"]
        held["predictions"] = [{"label": label, "probability": probability} for label, probability in self.predictions]
        if self.embedding_C is not None:
            held["embedding"] = base64.b64encode(self.embedding_C.astype("<f2").tobytes()).decode()
        return json.dumps({"schema": NOTE_SCHEMA, **held}, ensure_ascii=False, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a note.

        Raises:
            ValueError: it is invalid.
        """
        try:
            held = json.loads(data)
            if held.pop("schema") != NOTE_SCHEMA:
                raise ValueError("unknown schema")
            predictions = tuple((str(each["label"]), float(each["probability"])) for each in held.pop("predictions"))
            embedding = held.pop("embedding", None)
            features_C = None if embedding is None else np.frombuffer(base64.b64decode(embedding, validate=True), "<f2")
            note = cls(**held, predictions=predictions, embedding_C=features_C)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        numbers = [note.share, note.uncertainty, *([] if note.distance is None else [note.distance])]
        if not np.isfinite(numbers).all() or (features_C is not None and not np.isfinite(features_C).all()):
            raise ValueError("a number is not finite")
        return note


class Waiting(NamedTuple):
    """The photos of an inbox without a label."""

    photos: int
    size_bytes: int
    """With their notes."""


class Entry(NamedTuple):
    """A photo in the inbox, as far as the order of removal needs it."""

    name: str
    share: float
    uncertainty: float
    size_bytes: int


class Inbox:
    """An inbox that one process adds photos to. Not thread-safe."""

    def __init__(self, folder: Path, limits: InboxLimits) -> None:
        self.folder, self.limits = folder, limits
        self.decisions = Decisions(folder / LABELS)
        self._known = {path.name for path in photos_in(folder)}
        decided = self.decisions.read()
        self._waiting = {name: entry for name in self._known - decided.keys() if (entry := _entry(folder / name)) is not None}
        self.size_bytes = sum(entry.size_bytes for entry in self._waiting.values())
        self._classes: tuple[str, ...] = ()

    @classmethod
    def create(cls, folder: Path, *, consent: str, limits: InboxLimits) -> Self:
        """Open an inbox, or make one in a new or empty folder.

        Args:
            folder: readable by its owner only, if it is new.
            consent: why photos of requests may be kept; recorded.
            limits: the least interesting photos over them are removed.

        Raises:
            ConfigError: no consent is stated, or the folder holds something else or cannot be written.
        """
        if not consent.strip():
            raise ConfigError(
                "an inbox keeps photos of requests: state why that is permitted, such as --inbox-consent 'sign at the door, "
                "approved by A. Smith'",
                code="consent_missing",
            )
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            marked = (folder / MARKER).is_file()
            others = [] if marked else [name for name in sorted(os.listdir(folder)) if name != LOCK]
            if others:
                raise ConfigError(
                    f"{folder} has other files, such as {others[0]}; give a new folder for the inbox",
                    code="inbox_taken",
                )
            known = _read_marker(folder) if marked else {}
            marker = {"schema": SCHEMA, "consent": consent.strip(), "since": known.get("since", _now())}
            replace_file(folder / MARKER, _json(marker | {"classes": known.get("classes", [])}))
            _remove_leftovers(folder)
            return cls(folder, limits)
        except OSError as error:
            raise ConfigError(f"the inbox {folder} cannot be used: {error.strerror}", code="inbox_unwritable") from error
        except DataError as error:
            raise ConfigError(f"the inbox {folder} cannot be used: {error}", code=error.code) from error

    @property
    def waiting(self) -> int:
        """Photos without a label, as of the last one that was added."""
        return len(self._waiting)

    def add(self, photo: bytes, suffix: str, note: Note) -> Outcome:
        """Keep a photo, unless it is there already or all others are more interesting.

        Args:
            photo: a file without metadata.
            suffix: one of `SUFFIXES`.
            note: about it.

        Raises:
            OSError: it could not be written; nothing is left of it.
            DataError: the decisions cannot be read.
        """
        sha256 = hashlib.sha256(photo).hexdigest()
        name = f"{sha256}{suffix}"
        if name in self._known:
            return "duplicate"
        written = note.to_json()
        entry = Entry(name, note.share, note.uncertainty, len(photo) + len(written))
        with locked(self.folder):  # a photo that is being labeled right now is not removed
            for decided in self.decisions.read().keys() & self._waiting.keys():
                self._forget(decided)
            removed = self._to_make_room(entry)
            if removed is None:
                return "less_interesting"
            for name_removed in removed:
                self._forget(name_removed)
                self._known.discard(name_removed)
                (self.folder / name_removed).unlink(missing_ok=True)
                note_path(self.folder / name_removed).unlink(missing_ok=True)
        path = self.folder / name
        try:
            replace_file(note_path(path), written)
            replace_file(path, photo)
        except OSError:
            note_path(path).unlink(missing_ok=True)
            raise
        self._known.add(name)
        self._waiting[name] = entry
        self.size_bytes += entry.size_bytes
        return "kept"

    def record_classes(self, classes: Sequence[str]) -> None:
        """Record the classes of the model, for `edgeline label`.

        Raises:
            OSError: the file could not be written.
        """
        if self._classes != tuple(classes):
            replace_file(self.folder / MARKER, _json({**_read_marker(self.folder), "classes": list(classes)}))
            self._classes = tuple(classes)

    def _to_make_room(self, new: Entry) -> list[str] | None:
        """The least interesting photos that have to go for a new one; None if one of them is not less interesting."""
        photos, size_bytes = len(self._waiting) + 1, self.size_bytes + new.size_bytes
        removed = []
        for entry in sorted(self._waiting.values(), key=_interest):
            if photos <= self.limits.photos and size_bytes <= self.limits.size_bytes:
                break
            if _interest(entry) >= _interest(new):
                return None
            removed.append(entry.name)
            photos, size_bytes = photos - 1, size_bytes - entry.size_bytes
        return removed if photos <= self.limits.photos and size_bytes <= self.limits.size_bytes else None

    def _forget(self, name: str) -> None:
        self.size_bytes -= self._waiting.pop(name).size_bytes


def waiting(folder: Path) -> Waiting:
    """Count the photos of an inbox that have no label yet.

    Raises:
        ConfigError: the folder is not an inbox, or cannot be read.
    """
    try:
        _read_marker(folder)
        decided = Decisions(folder / LABELS).read()
        left = [path for path in photos_in(folder) if path.name not in decided]
        return Waiting(len(left), sum(_size(path) + _size(note_path(path)) for path in left))
    except OSError as error:
        raise ConfigError(f"the inbox {folder} cannot be read: {error.strerror}", code="inbox_unreadable") from error
    except DataError as error:
        raise ConfigError(f"the inbox {folder} cannot be read: {error}", code=error.code) from error


def classes_of(folder: Path) -> list[str]:
    """The classes of the model whose server made an inbox; empty if the folder is none, or no photo has been kept yet."""
    try:
        return [str(label) for label in _read_marker(folder).get("classes", [])]
    except (OSError, ConfigError):
        return []


def read_note(photo: Path) -> Note | None:
    """The note of a photo; None if it has none, or an invalid one."""
    try:
        with note_path(photo).open("rb") as file:
            return Note.from_json(file.read(MAX_NOTE_BYTES))
    except (OSError, ValueError):
        return None


def note_path(photo: Path) -> Path:
    """Where the note of a photo is."""
    return photo.with_suffix(".json")


def photos_in(folder: Path) -> Iterator[Path]:
    """The photos of an inbox; other files are not listed."""
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix in SUFFIXES and len(stem) == 64 and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _interest(entry: Entry) -> tuple[float, float]:
    return entry.share, entry.uncertainty


def _entry(photo: Path) -> Entry | None:
    note = read_note(photo)
    share, uncertainty = (0.0, 0.0) if note is None else (note.share, note.uncertainty)
    size_bytes = _size(photo) + _size(note_path(photo))
    return Entry(photo.name, share, uncertainty, size_bytes) if size_bytes else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left: unfinished files, and notes without a photo."""
    photos = {path.stem for path in photos_in(folder)}
    for path in folder.iterdir():
        unfinished = path.name.startswith(".") and path.name.endswith(".tmp")
        without_photo = path.suffix == ".json" and len(path.stem) == 64 and path.stem not in photos
        if unfinished or without_photo:
            path.unlink(missing_ok=True)


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / MARKER).read_bytes())
    except (FileNotFoundError, ValueError):
        held = None
    if not isinstance(held, dict) or held.get("schema") != SCHEMA:
        raise ConfigError(f"{folder} is not an inbox: it has no valid {MARKER}", code="not_an_inbox")
    return held


def _json(held: dict[str, Any]) -> bytes:
    return (json.dumps(held, ensure_ascii=False, indent=1) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
