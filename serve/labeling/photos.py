"""The photos of a folder that are to be labeled, in the order in which they are shown, with the model's predictions.

A photo of an inbox has a note with its prediction. Other photos, and those whose note is from another version, are classified
when an artifact is given. Without both they are shown by name.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError, ImageError
from edgeline.serve.image_files import kind_of, open_image
from edgeline.serve.inbox.folder import MARKER, read_note
from edgeline.serve.labeling.order import label_order
from edgeline.serve.leftovers import leftover

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")
PREDICTIONS = 5
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A photo that can be shown."""

    name: str
    """Relative to the labels' folder if it is in it, with forward slashes; otherwise absolute."""
    path: Path
    media_type: str
    predictions: tuple[tuple[str, float], ...] = ()
    """The most likely classes with their probabilities, best first; empty without a prediction."""
    uncertainty: float = 0.0
    version: str = ""
    """Of the model that predicted."""
    embedding_C: np.ndarray | None = None


def find_photos(folder: Path, beside: Path) -> tuple[list[Photo], list[str]]:
    """Find the photos in a folder and the folders in it, sorted by name.

    Args:
        folder: the folder; hidden files and what systems leave are skipped, links to other folders are not followed.
        beside: the folder of the labels, to which names are relative.

    Returns:
        The photos, and each file that is named like an image and cannot be read, with the reason.

    Raises:
        ConfigError: it does not exist, or no image in it can be read.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {problem}; expected a folder with photos", code="folder_missing")
    photos: list[Photo] = []
    unreadable: list[str] = []
    for path in _files(folder):
        try:
            photos.append(_photo(path, beside))
        except (ImageError, OSError) as error:
            unreadable.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if not photos:
        if (folder / MARKER).is_file() and not unreadable:
            raise ConfigError(f"the inbox {folder} has no photos yet; `edgeline serve --inbox` adds them", code="no_images")
        listed = f" ({unreadable[0]})" if unreadable else ""
        raise ConfigError(f"{folder} has no image that can be read{listed}; expected photos", code="no_images")
    return photos, unreadable


def with_predictions(
    photos: Sequence[Photo], classifier: Classifier | None, show: Callable[[str], None] = lambda line: None
) -> list[Photo]:
    """Add the predictions of notes, and with a classifier those of all photos that it has not predicted yet.

    Args:
        photos: as `find_photos` returned them; those that cannot be decoded stay without a prediction.
        classifier: None uses the notes alone.
        show: called with a line before many photos are classified.
    """
    known = [_noted(photo) for photo in photos]
    if classifier is None:
        return known
    version = f"{classifier.manifest.name} {classifier.manifest.version}"
    missing = [photo for photo in known if photo.version != version]
    if missing:
        show(f"classifying {len(missing):,} photos with {version}")
    return [photo if photo.version == version else _classified(photo, classifier, version) for photo in known]


def in_order(photos: Sequence[Photo]) -> list[Photo]:
    """Order photos for labeling: those of the newest version first, in each the most useful; those without a prediction last.

    Features of different versions cannot be compared.
    """
    by_version: dict[str, list[Photo]] = {}
    for photo in photos:
        by_version.setdefault(photo.version, []).append(photo)
    ordered: list[Photo] = []
    for version in sorted(by_version, key=_version_key, reverse=True):
        group = by_version[version]
        if not version:
            ordered += group
            continue
        features = [photo.embedding_C for photo in group if photo.embedding_C is not None]
        embedding_NC = np.stack(features) if len(features) == len(group) else None
        ordered += [group[index] for index in label_order(np.array([photo.uncertainty for photo in group]), embedding_NC)]
    return ordered


def _version_key(version: str) -> tuple[int, str]:
    name, _, number = version.rpartition(" ")
    return (int(number) if number.isdigit() else -1, name)


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and leftover(name) is None)
        for name in sorted(names):
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".") and leftover(name) is None:
                yield Path(parent, name)


def _photo(path: Path, beside: Path) -> Photo:
    if not path.is_file():
        raise ImageError("not a file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageError(f"more than {MAX_BYTES:,} bytes", code="image_too_large")
    try:
        with open_image(data) as image:
            format = {"MPO": "JPEG"}.get(image.format or "", image.format or "")
    except Exception as error:  # whatever Pillow raises for a malicious header
        raise ImageError(f"not an image{f', but {kind}' if (kind := kind_of(data)) else ''}") from error
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(beside))
    name = absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()
    return Photo(name=name, path=absolute, media_type=f"image/{format.lower()}")


def _noted(photo: Photo) -> Photo:
    note = read_note(photo.path)
    if note is None:
        return photo
    version = f"{note.model} {note.version}"
    return replace(
        photo,
        predictions=note.predictions,
        uncertainty=note.uncertainty,
        version=version,
        embedding_C=None if note.embedding_C is None else note.embedding_C.astype(np.float32),
    )


def _classified(photo: Photo, classifier: Classifier, version: str) -> Photo:
    try:
        outputs = classifier.run(classifier.pixels(photo.path.read_bytes())[None])
    except (ImageError, OSError):
        return replace(photo, predictions=(), version="", embedding_C=None)
    probabilities_K = outputs.probabilities_NK[0]
    ranking = classifier.rank(probabilities_K, PREDICTIONS)
    second = ranking[1].probability if len(ranking) > 1 else 0.0
    return replace(
        photo,
        predictions=tuple((each.label, each.probability) for each in ranking),
        uncertainty=1 - (ranking[0].probability - second),
        version=version,
        embedding_C=None if outputs.embedding_NC is None else outputs.embedding_NC[0],
    )


def undecided(photos: Sequence[Photo], decided: Mapping[str, str | None]) -> list[Photo]:
    """The photos without a decision, in their order."""
    return [photo for photo in photos if photo.name not in decided]
