"""Open a folder of photos for labeling, and serve the page.

run(LabelingConfig(folder=Path("inbox")))
"""

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.reader import names, versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError, DataError, EdgelineError
from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers
from edgeline.serve.http.transport.server import Hooks, Server, listen, url_of
from edgeline.serve.inbox.decisions import FILE_NAME, Decisions, check_label, locked
from edgeline.serve.inbox.folder import classes_of
from edgeline.serve.labeling.app import LabelingApp, create_app
from edgeline.serve.labeling.photos import find_photos, in_order, undecided, with_predictions
from edgeline.serve.terminal import printable

GRACE_S = 2.0
SHOWN = 3
"""Unreadable files that are listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelingConfig:
    """What is labeled, with which classes, and where the labels go."""

    folder: Path
    labels: Path | None = None
    """The CSV file; by default `labels.csv` in the folder."""
    artifact: Path | None = None
    """Predicts the photos and has the classes."""
    classes: Sequence[str] = ()
    """Instead of the artifact's, or before them."""
    port: int = 0


def run(config: LabelingConfig) -> None:
    """Serve the page on 127.0.0.1 until a signal to stop.

    Raises:
        ConfigError: the folder, the classes, the labels' file or the port cannot be used.
        ArtifactError: the artifact cannot be opened.
    """
    session = open_session(config)
    token = secrets.token_urlsafe(16)
    with listen("127.0.0.1", config.port, option="--port") as listener:
        url = f"{url_of(listener)}/{token}/"
        handlers = Handlers(create_app(session, token))
        hooks = Hooks(started=lambda: print(f"edgeline: label the photos at {url}", flush=True))
        Server(handlers, Connections(ConnectionLimits()), hooks=hooks, grace_s=GRACE_S).run(listener)


def open_session(config: LabelingConfig) -> LabelingApp:
    """Find the photos, the classes and the decisions so far; print what was found.

    Raises:
        ConfigError, ArtifactError: as `run`.
    """
    path = config.labels or config.folder / FILE_NAME
    photos, unreadable = find_photos(config.folder, path.parent)
    if (store := _store_around(config.folder)) is not None:
        raise ConfigError(
            f"{config.folder} belongs to the artifacts in {store}, which must not change; label the photos of another folder",
            code="folder_in_store",
        )
    decisions = Decisions(path)
    try:
        with locked(path.parent):  # that it can be written is known before the first label
            decided = decisions.read()
    except DataError as error:
        raise ConfigError(str(error), code=error.code) from error
    classifier = None if config.artifact is None else Classifier.open(config.artifact)
    labeled = [label for label in decided.values() if label is not None]
    classes = list(dict.fromkeys([*config.classes, *_own_classes(config, classifier), *sorted(set(labeled))]))
    if not classes:
        raise ConfigError(
            f"the classes of {config.folder} are unknown; give --artifact, or --classes with names or a file",
            code="classes_missing",
        )
    for line in unreadable[:SHOWN]:
        _print(f"left out: {line}")
    if len(unreadable) > SHOWN:
        _print(f"left out: {len(unreadable) - SHOWN:,} more files that cannot be read")
    shown = in_order(with_predictions(photos, classifier, _print))
    left = len(undecided(shown, decided))
    _print(f"{left:,} of {len(shown):,} photos wait for a label, {len(classes):,} classes; labels go to {path}")
    return LabelingApp(shown, classes, decisions)


def parse_classes(given: str) -> list[str]:
    """The classes of `--classes`: a file with one in each line, or names separated by commas.

    Raises:
        ConfigError: the file cannot be read, or a name is not one line of text.
    """
    path = Path(given)
    try:
        if path.is_file():
            names_given = path.read_text(encoding="utf-8-sig").splitlines()
        elif path.suffix in (".txt", ".csv"):
            raise ConfigError(f"{path} does not exist; expected a file with one class in each line", code="classes_missing")
        else:
            names_given = given.split(",")
        classes = [check_label(name) for name in names_given if name.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}", code="classes_missing") from error
    except EdgelineError as error:
        raise ConfigError(str(error), code="classes_missing") from error
    if not classes:
        raise ConfigError(f"{given!r} has no class; expected a file or names separated by commas", code="classes_missing")
    return list(dict.fromkeys(classes))


def find_artifact(given: str, store: Path) -> Path:
    """The artifact of `--artifact`: a path, or a name in the store.

    Raises:
        ConfigError: there is none.
    """
    path = Path(given)
    if path.exists() or os.sep in given:
        return path
    if (store / given).is_dir():
        return store / given
    raise ConfigError(f"there is no {given} here and no artifact of that name in {store}", code="artifact_missing")


def _own_classes(config: LabelingConfig, classifier: Classifier | None) -> Sequence[str]:
    if classifier is not None:
        return classifier.manifest.labels
    return () if config.classes else classes_of(config.folder)


def _store_around(folder: Path) -> Path | None:
    """The artifact, name's folder or store that a folder is or is in; None if it is in none."""
    real = Path(os.path.realpath(folder))
    for place in (real, *real.parents[:-1]):
        try:
            named = [place, *(place / name for name in names(place))]
            versioned = [each / str(version) for each in named for version in versions(each)]
        except EdgelineError:  # it cannot be listed
            continue
        if any((each / MANIFEST).is_file() for each in (place, *versioned)):  # a folder such as 2026/ is not a version
            return place
    return None


def _print(line: str) -> None:
    print(f"edgeline: {printable(line)}", file=sys.stderr, flush=True)
