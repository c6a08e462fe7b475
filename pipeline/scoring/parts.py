"""Score one shard of images: a Parquet file with a row for each, named by a digest of everything that it depends on.

A file appears complete or not at all, and one that exists is not made again. A shard may be scored twice, by two machines even:
both write the same bytes.

Needs pyarrow, and neither PyTorch nor a configuration of the pipeline.
"""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.pipeline.runs.atomic_files import replace_file
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.step import step_key
from edgeline.pipeline.scoring.images import Entry
from edgeline.pipeline.sources.file_walk import open_regular
from edgeline.pipeline.sources.image_extensions import is_named_like_an_image
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, ImageError

SCHEMA = "edgeline.score/1"
PACKAGES = ("numpy", "pillow", "onnxruntime", "pyarrow")
"""Whose versions may change a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What every shard has in common."""

    artifact: str
    """Folder of the version, absolute."""
    manifest_sha256: str
    variant: str
    top_k: int
    probabilities: bool
    """Whether a row has the probabilities of all classes too."""
    root: str
    """Folder that the names of the images are relative to, absolute."""
    output: str
    """Folder of the Parquet files, absolute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A finished shard."""

    file: str
    """Name in the output folder; empty if the shard has no image."""
    images: int
    reused: bool
    labels: dict[str, int] = field(default_factory=dict)
    """Number of images by their most likely class."""
    errors: dict[str, int] = field(default_factory=dict)
    """Number of images without a prediction, by the error's code."""
    ignored: int = 0
    """Files that are no images, and not named like one."""


def score_part(scoring: Scoring, entries: Sequence[Entry]) -> Part:
    """Score a shard, or find its file.

    Raises:
        ArtifactError: the artifact cannot be loaded, or is not the one that was meant.
        OSError: the file cannot be written.
    """
    classifier = _classifier(scoring)
    digests = [_digest(scoring, entry, classifier.limits.max_bytes) for entry in entries]
    key = _key(scoring, [(entry.name, *digest) for entry, digest in zip(entries, digests, strict=True)])
    path = Path(scoring.output, f"part-{key[:32]}.parquet")
    if (found := _read(path)) is not None:
        return found
    files = [(entry, sha256) for entry, (sha256, _) in zip(entries, digests, strict=True)]
    size = classifier.variant.max_batch
    batches = (files[start : start + size] for start in range(0, len(files), size))
    rows = [row for batch in batches for row in _rows(scoring, classifier, batch)]
    images = [row for row in rows if row]
    if not images:
        return Part(file="", images=0, reused=False, ignored=len(rows))
    _write(path, images, classifier, scoring, ignored=len(rows) - len(images))
    return Part(file=path.name, images=len(images), reused=False, ignored=len(rows) - len(images), **_counts(images))


def prediction(row: dict[str, Any]) -> bool:
    """Whether a row has a prediction, not an error."""
    return row["label"] is not None


_lock = threading.Lock()
_loaded: dict[tuple[str, str, str], Classifier] = {}
"""The classifier that was used last: a process works on many shards of the same artifact."""


def _classifier(scoring: Scoring) -> Classifier:
    key = (scoring.artifact, scoring.manifest_sha256, scoring.variant)
    with _lock:
        if key not in _loaded:
            _loaded.clear()
            # One thread: as many shards as there are cores are scored at the same time.
            opened = Classifier.open(scoring.artifact, variant=scoring.variant, threads=1)
            if opened.artifact.manifest_sha256 != scoring.manifest_sha256:
                raise ArtifactError(
                    f"{scoring.artifact} is another artifact than the one that the scoring began with; copy it again",
                    code="artifact_changed",
                )
            _loaded[key] = opened
        return _loaded[key]


def _read_bytes(scoring: Scoring, entry: Entry, max_bytes: int) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it cannot be read, or is over the limit.
    """
    if entry.code:
        raise ImageError(entry.message, code=entry.code)
    try:
        with open_regular(os.path.join(scoring.root, entry.name)) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ImageError(f"the file has {size:,} bytes, the limit is {max_bytes:,}", code="image_too_large")
            return file.read(max_bytes + 1)
    except ValueError as error:  # a name with a NUL in it
        raise ImageError(f"cannot be read: {error}", code="unreadable") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", code="unreadable") from error


def _digest(scoring: Scoring, entry: Entry, max_bytes: int) -> tuple[str, str]:
    """The SHA-256 of a file and an empty text, or an empty text and the code of the error."""
    try:
        return hashlib.sha256(_read_bytes(scoring, entry, max_bytes)).hexdigest(), ""
    except ImageError as error:
        return "", error.code


def _key(scoring: Scoring, images: list[tuple[str, str, str]]) -> str:
    settings = {name: value for name, value in asdict(scoring).items() if name not in ("artifact", "root", "output")}
    return step_key({"scoring": settings, "images": images}, code_digest(__name__), PACKAGES)


def _rows(scoring: Scoring, classifier: Classifier, files: list[tuple[Entry, str]]) -> Iterator[dict[str, Any]]:
    """The rows of one batch of files with their SHA-256; an empty one for a file that is not meant to be an image."""
    pixels: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    for entry, sha256 in files:
        row: dict[str, Any] = {"path": entry.name, "sha256": sha256 or None, "label": None}
        try:
            data = _read_bytes(scoring, entry, classifier.limits.max_bytes)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ImageError("the file has changed while it was read", code="changed_during_read")
            pixels.append(classifier.pixels(data))
            rows.append(row | {"index": len(pixels) - 1})
        except ImageError as error:
            other = error.code in ("not_an_image", "image_empty") or (error.code == "image_too_large" and not sha256)
            ignored = other and not is_named_like_an_image(entry.name)
            rows.append({} if ignored else row | {"error": str(error), "code": error.code})
    answers = _answers(classifier, pixels)
    for row in rows:
        if "index" in row:
            yield row | _answered(classifier, scoring, answers[row.pop("index")])
        else:
            yield row


def _answers(classifier: Classifier, pixels: list[np.ndarray]) -> list[np.ndarray | ArtifactError]:
    """The probabilities of each image, or why the model has none for it."""
    if not pixels:
        return []
    try:
        return list(classifier.probabilities(np.stack(pixels)))
    except ArtifactError as error:
        if len(pixels) == 1:
            return [error]
        return [answer for each in pixels for answer in _answers(classifier, [each])]


def _answered(classifier: Classifier, scoring: Scoring, answer: np.ndarray | ArtifactError) -> dict[str, Any]:
    if isinstance(answer, ArtifactError):
        return {"error": str(answer), "code": answer.code}
    best = classifier.rank(answer, scoring.top_k)
    return {
        "label": best[0].label,
        "confidence": best[0].probability,
        "top_labels": [each.label for each in best],
        "top_probabilities": [each.probability for each in best],
        **({"probabilities": answer.tolist()} if scoring.probabilities else {}),
    }


def _write(path: Path, rows: list[dict[str, Any]], classifier: Classifier, scoring: Scoring, ignored: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = classifier.manifest
    text, number = pa.string(), pa.float32()
    fields = {"path": text, "sha256": text, "label": text, "confidence": number}
    fields |= {"top_labels": pa.list_(text), "top_probabilities": pa.list_(number)}
    if scoring.probabilities:
        fields["probabilities"] = pa.list_(number, len(manifest.labels))
    metadata = {
        "edgeline.schema": SCHEMA,
        "edgeline.artifact": manifest.name,
        "edgeline.version": str(manifest.version),
        "edgeline.manifest_sha256": scoring.manifest_sha256,
        "edgeline.variant": scoring.variant,
        "edgeline.labels": json.dumps(manifest.labels),
        "edgeline.ignored": str(ignored),
    }
    schema = pa.schema([*fields.items(), ("error", text), ("code", text)], metadata=metadata)
    table = pa.Table.from_pylist(rows, schema=schema)
    replace_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _read(path: Path) -> Part | None:
    """A part that exists already; None if there is none, or it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["label", "code"], partitioning=None)
        ignored = int((table.schema.metadata or {})[b"edgeline.ignored"])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    return Part(file=path.name, images=table.num_rows, reused=True, ignored=ignored, **_counts(table.to_pylist()))


def _counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    labels = Counter(row["label"] for row in rows if prediction(row))
    errors = Counter(row["code"] for row in rows if not prediction(row))
    return {"labels": dict(labels), "errors": dict(errors)}
