"""Monitor a published model: test what devices and servers have seen against what the version in use was tested on.

    found = monitor(artifacts, "birds", ["http://127.0.0.1:8000/drift?model=birds", "devices/"])

The sources are drift snapshots: files, folders of them, or the URLs of servers. Those of the version in use are one window;
others, of a version before, are left out and counted. An image is in one window only (`pipeline.monitoring.series`).
"""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from edgeline.pipeline.monitoring.series import ALPHA, Monitored, monitor_window
from edgeline.serve.artifact.channels import STABLE
from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.reader import open_artifact, resolve
from edgeline.serve.drift.report import read_reference
from edgeline.serve.drift.snapshot import MAX_BYTES, compare_bins, read_snapshot
from edgeline.serve.errors import ConfigError, InputError

TIMEOUT_S = 10.0
MOST_IMAGES = 10**8
"""Of a snapshot. The draws of the permutation test have a limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitoring:
    """What was found."""

    name: str
    version: int
    monitored: Monitored | None
    """None without a new image of the version in use."""
    snapshots: int
    others: int
    """Snapshots of other versions."""
    unreadable: tuple[str, ...]
    """Sources that could not be read, each with the reason."""


def monitor(artifacts: Path, name: str, sources: Sequence[str], *, channel: str = STABLE, alpha: float = ALPHA) -> Monitoring:
    """Read the snapshots of the version in use, test them as one window, and add it to the version's series.

    Args:
        artifacts: folder of the store; `monitoring/` in it has the series of each version.
        name: of the artifact.
        sources: files, folders of `*.json`, or `http://` and `https://` URLs.
        channel: whose version is in use.
        alpha: probability of a false alarm.

    Raises:
        ArtifactError: the version in use cannot be read, or has no reference.
        ConfigError: no source could be read.
        DataError: the file of the series is damaged.
    """
    opened = open_artifact(resolve(artifacts / "store" / name, channel))
    reference = read_reference(opened)
    sha256 = hashlib.sha256((opened.folder / MANIFEST).read_bytes()).hexdigest()
    read: dict[str, dict[str, Any]] = {}
    unreadable = []
    for source in expand(sources):
        try:
            snapshot = read_snapshot(_fetch(source))
            if snapshot["manifest_sha256"] == sha256:
                compare_bins(snapshot, reference)
                if snapshot["count"] > MOST_IMAGES:
                    raise InputError(f"it has {snapshot['count']:,} images, at most {MOST_IMAGES:,} are expected")
            read[source] = snapshot
        except (InputError, OSError) as error:
            unreadable.append(f"{source}: {' '.join(str(error).split())}")
    if not read:
        raise ConfigError(
            f"no drift snapshot could be read: {'; '.join(unreadable[:3]) or 'no source was given'}; expected files that "
            "`edgeline predict --drift` writes, or `/drift` of a server with --drift",
            code="no_snapshots",
        )
    own = {source: each for source, each in read.items() if each["manifest_sha256"] == sha256 and each["count"]}
    found = None
    if own:
        path = artifacts / "monitoring" / f"{name}-{opened.manifest.version}-{sha256[:12]}.json"
        found = monitor_window(path, own, reference, alpha=alpha)
    return Monitoring(
        name=name,
        version=opened.manifest.version,
        monitored=found,
        snapshots=len(own),
        others=len(read) - len(own),
        unreadable=tuple(unreadable),
    )


def expand(sources: Sequence[str]) -> list[str]:
    """The files of folders, and everything else as it is."""
    found: list[str] = []
    for source in sources:
        folder = Path(source)
        found += sorted(map(str, folder.glob("*.json"))) if _is_path(source) and folder.is_dir() else [source]
    return found


def monitoring_lines(found: Monitoring) -> list[str]:
    """What was found, for the terminal."""
    lines = [f"not read: {each}" for each in found.unreadable]
    if found.others:
        lines.append(f"{found.others} snapshots of other versions, or without images, are left out")
    if (window := found.monitored) is None:
        return [*lines, f"{found.name} {found.version}: no new images"]
    title = f"{found.name} {found.version}, window {window.window}"
    lines.append(f"{title}: {window.count:,} images, {window.since} to {window.until}")
    for each in window.test.statistics:
        if each.name in window.test.drifted:
            means = "" if each.mean is None else f", mean {each.mean:.4g}, held-out {each.reference_mean:.4g}"
            lines.append(f"  {each.name} has changed: p = {each.p_value:.2g}{means}")
    if window.alarm:
        lines.append(f"alarm: {', '.join(window.alarm)}")
    elif window.test.drifted:
        lines.append("no alarm: a change this large in one of so many windows can be chance")
    else:
        lines.append("no change beyond chance")
    return lines


def to_dict(found: Monitoring) -> dict[str, Any]:
    """What was found, as JSON types."""
    window = found.monitored
    tested = {} if window is None else {each.name: each.p_value for each in window.test.statistics}
    return {
        "name": found.name,
        "version": found.version,
        "snapshots": found.snapshots,
        "others": found.others,
        "unreadable": list(found.unreadable),
        "window": None if window is None else window.window,
        "images": 0 if window is None else window.count,
        "p_values": tested,
        "drifted": [] if window is None else window.test.drifted,
        "alarm": [] if window is None else list(window.alarm),
    }


def _fetch(source: str) -> bytes:
    """The bytes of a file, or of a server's answer.

    Raises:
        OSError: it cannot be read.
    """
    if _is_path(source):
        with Path(source).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    try:
        with urllib.request.urlopen(source, timeout=TIMEOUT_S) as reply:
            return bytes(reply.read(MAX_BYTES + 1))
    except (HTTPException, ValueError) as error:  # ValueError: not a URL
        raise OSError(f"{type(error).__name__}: {error}") from error
    except urllib.error.HTTPError as error:
        body = error.read(1000)
        try:
            reason = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError):
            reason = error.reason
        raise OSError(f"HTTP {error.code}: {reason}") from error


def _is_path(source: str) -> bool:
    return not source.startswith(("http://", "https://"))
