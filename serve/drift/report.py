"""Drift between a model's inputs in production and its validation images: snapshots of devices compared with a reference.

    report = compare([Path("drift.json")], Path("artifacts/store/birds"))
    report["drifted"]                 # ["brightness", "entropy"]

Used by `edgeline drift` and by scheduled retraining.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST_NAME
from edgeline.serve.artifact.reader import Artifact, open_artifact
from edgeline.serve.drift.snapshot import MAX_BYTES, distance, merge, read_snapshot
from edgeline.serve.errors import ArtifactError, InputError

FILE_NAME = "statistics.json"
"""The reference in an artifact: a snapshot of its held-out images."""
LIMIT = 0.25
"""Population stability index that indicates a large change, by a rule of thumb."""


def compare(paths: Sequence[Path], artifact: Path, limit: float = LIMIT) -> dict[str, Any]:
    """Merge snapshots and compare them with an artifact's reference.

    Args:
        paths: snapshot files, all of this artifact.
        artifact: its folder, or a name's folder in a store for its stable version.
        limit: a statistic has drifted if its `psi` exceeds both this and `psi_by_chance`.

    Returns:
        JSON types: `model`, `version`, `since`, `until`, `count`, `reference_count`, `limit`, `statistics` from
        `serve.drift.snapshot.distance`, and `drifted`, the names of the statistics that have drifted.

    Raises:
        ArtifactError: the artifact is incomplete, or has no reference.
        InputError: a file is not a snapshot, or a snapshot of another model or version.
    """
    opened = open_artifact(artifact)
    reference = read_reference(opened)
    snapshot = merge([_read(path) for path in paths])
    sha256 = hashlib.sha256((opened.folder / MANIFEST_NAME).read_bytes()).hexdigest()
    if snapshot["manifest_sha256"] != sha256:
        raise InputError(
            f"the snapshots belong to {snapshot['model']} {snapshot['version']}, with another manifest than {opened.folder}; "
            "give the folder of the version that produced them",
            code="snapshots_differ",
        )
    statistics = distance(snapshot, reference)
    return {
        **{name: snapshot[name] for name in ("model", "version", "since", "until", "count")},
        "reference_count": reference["count"],
        "limit": limit,
        "statistics": statistics,
        "drifted": [name for name, found in statistics.items() if found["psi"] > max(limit, found["psi_by_chance"])],
    }


def read_reference(artifact: Artifact) -> dict[str, Any]:
    """The statistics of an artifact's held-out images.

    Raises:
        ArtifactError: it has none.
    """
    if not any(entry.path == FILE_NAME for entry in artifact.manifest.files):
        raise ArtifactError(
            f"{artifact.folder} has no {FILE_NAME}; it was made by an older version, publish it again", code="no_reference"
        )
    return read_snapshot(artifact.read(FILE_NAME))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", code="snapshot_invalid") from error
    try:
        return read_snapshot(data)
    except InputError as error:
        raise InputError(f"{path}: {error}", code=error.code) from error
