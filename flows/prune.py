"""Remove old versions and runs that nothing needs any more.

    plan = plan_prune(Path("artifacts"), keep=3)
    prune(plan)

Kept are the newest versions and runs of each name, every version that a channel has or ever had, the runs that published kept
versions, and every run that was written to in the last day or that a process holds. What is planned is checked again when it is
removed, because a channel may have moved since. A version disappears by one rename.

Nothing heavy is imported here.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeline.export.publishing.store import STAGING, store_errors, store_lock
from edgeline.pipeline.evaluation.answers import checkpoint_sha256
from edgeline.pipeline.runs.receipts import in_use
from edgeline.serve.artifact.channels import read_channels
from edgeline.serve.artifact.manifest import FILE_NAME, Manifest
from edgeline.serve.artifact.reader import names, versions
from edgeline.serve.errors import EdgelineError

KEEP = 3
RECENT_S = 24 * 3600.0
"""A run that was written to in this time may be in progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prunable:
    """A folder that nothing needs."""

    path: Path
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """What would be removed."""

    artifacts: Path
    keep: int
    versions: tuple[Prunable, ...]
    runs: tuple[Prunable, ...]


def plan_prune(artifacts: Path, keep: int = KEEP) -> PrunePlan:
    """Find what nothing needs; removes nothing.

    Args:
        artifacts: folder of runs and the store.
        keep: newest versions, and newest runs, of each name that are kept in any case.

    Raises:
        ArtifactError: the channels of a name cannot be read.
        StoreError: the store cannot be read.
    """
    store = artifacts / "store"
    old = [store / name / str(version) for name in names(store) for version in _old_versions(store / name, keep)]
    gone = set(old)
    kept = [store / name / str(version) for name in names(store) for version in versions(store / name)]
    published = {_checkpoint_of(folder) for folder in kept if folder not in gone}
    runs = [run for run in _old_runs(artifacts / "runs", keep) if checkpoint_sha256(run) not in published]
    return PrunePlan(artifacts=artifacts, keep=keep, versions=_sized(old), runs=_sized(runs))


def prune(plan: PrunePlan) -> list[Path]:
    """Remove what was planned and is still not needed.

    Returns:
        The folders that were removed.

    Raises:
        StoreError: a version cannot be removed.
        EdgelineError: a run cannot be removed.
    """
    removed = []
    for entry in plan.versions:
        name = entry.path.parent
        with store_errors(name), store_lock(name):
            if int(entry.path.name) not in _old_versions(name, plan.keep):
                continue
            hidden = entry.path.with_name(f"{STAGING}pruned-{entry.path.name}")  # the next publisher removes it if this cannot
            _make_writable(entry.path)
            entry.path.rename(hidden)
            shutil.rmtree(hidden)
        removed.append(entry.path)
    for entry in plan.runs:
        if entry.path in _old_runs(plan.artifacts / "runs", plan.keep):
            try:
                shutil.rmtree(entry.path)
            except OSError as error:
                raise EdgelineError(f"{entry.path} cannot be removed: {error.strerror} ({error.filename})") from error
            removed.append(entry.path)
    return removed


def _old_versions(folder: Path, keep: int) -> list[int]:
    """The versions of a name that are neither among the newest nor named by a channel or what it had before."""
    channels, published = read_channels(folder), versions(folder)
    moves = [event for event in channels.history if event.action in ("promote", "rollback")]
    named = set(channels.pointers.values()) | {event.version for event in moves} | {event.before for event in moves}
    # If every newer one was yanked, an older one is in use.
    newest = [version for version in published if version not in channels.yanked][-keep:] + published[-keep:]
    return [version for version in published if version not in named and version not in newest]


def _old_runs(folder: Path, keep: int) -> list[Path]:
    """The runs of each name that are not among the newest, and that no process works on."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for config in folder.glob("*/config.json"):
        by_name[config.parent.name.rpartition("-")[0]].append(config.parent)
    old = [run for runs in by_name.values() for run in sorted(runs, key=_last_written)[:-keep]]
    return [run for run in sorted(old) if _last_written(run) < time.time() - RECENT_S and not in_use(run)]


def _last_written(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run, *run.iterdir()))


def _checkpoint_of(folder: Path) -> str | None:
    try:
        checkpoint = Manifest.from_json((folder / FILE_NAME).read_bytes()).provenance.get("checkpoint_sha256")
    except (OSError, EdgelineError):
        return None
    return checkpoint if isinstance(checkpoint, str) else None


def _make_writable(folder: Path) -> None:
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        path.chmod(path.stat().st_mode | 0o700)


def _sized(folders: Iterable[Path]) -> tuple[Prunable, ...]:
    found = []
    for folder in folders:
        size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
        found.append(Prunable(path=folder, bytes=size))
    return tuple(found)
