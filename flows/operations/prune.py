"""Remove old versions and runs that nothing needs any more.

    plan = plan_prune(Path("artifacts"), keep=3)
    prune(plan)

Kept are the newest versions and runs of each name, every version that a channel has or ever had or whose splits a kept version
keeps, the runs that published kept versions, teach kept runs or belong to an experiment, and every run that was written to in
the last day or that a process holds. What is planned is checked again when it is removed, because a channel may have moved
since. A version disappears by one rename.

Nothing heavy is imported here.
"""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeline.export.publishing.store import STAGING, store_errors, store_lock
from edgeline.pipeline.evaluation.answers import checkpoint_sha256
from edgeline.pipeline.runs.receipts import in_use
from edgeline.pipeline.runs.run_log import RunLog
from edgeline.serve.artifact.channels import read_channels
from edgeline.serve.artifact.manifest import FILE_NAME, Manifest
from edgeline.serve.artifact.reader import names, versions
from edgeline.serve.errors import ConfigError, EdgelineError

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
        ConfigError: there is no such folder.
        ArtifactError: the channels of a name cannot be read.
        StoreError: the store cannot be read.
    """
    if not artifacts.is_dir():
        raise ConfigError(f"{artifacts} does not exist; name the folder of runs and the store as `artifacts`")
    store = artifacts / "store"
    old = [store / name / str(version) for name in names(store) for version in _old_versions(store / name, keep)]
    return PrunePlan(
        artifacts=artifacts, keep=keep, versions=_sized(old), runs=_sized(_unneeded_runs(artifacts, keep, set(old)))
    )


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
    unneeded = _unneeded_runs(plan.artifacts, plan.keep, set())
    for entry in plan.runs:
        if entry.path in unneeded:
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
    kept = {version for version in published if version in named or version in newest}
    waiting = list(kept)
    while waiting:  # a version whose splits another one keeps, and so on
        manifest = _manifest(folder / str(waiting.pop()))
        older = None if manifest is None else manifest.provenance.get("config", {}).get("prepare", {}).get("keep_splits")
        if older in published and older not in kept:
            kept.add(older)
            waiting.append(older)
    return [version for version in published if version not in kept]


def _unneeded_runs(artifacts: Path, keep: int, gone: Collection[Path]) -> list[Path]:
    """The old runs that published no version besides those that are gone, teach no other run and are in no experiment."""
    store, runs = artifacts / "store", artifacts / "runs"
    folders = [store / name / str(version) for name in names(store) for version in versions(store / name)]
    kept = [manifest for folder in folders if folder not in gone and (manifest := _manifest(folder)) is not None]
    published = {manifest.provenance.get("checkpoint_sha256") for manifest in kept}
    old = [run for run in _old_runs(runs, keep) if checkpoint_sha256(run) not in published]
    experiments = {entry.run for entry in RunLog(artifacts).select() if entry.experiment} if old else set()
    teachers = {folder for run in runs.glob("*/config.json") if run.parent not in old for folder in _teachers(run)}
    return [run for run in old if run.name not in experiments and run.resolve() not in teachers]


def _old_runs(folder: Path, keep: int) -> list[Path]:
    """The runs of each name that are not among the newest, and that no process works on."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for config in folder.glob("*/config.json"):
        by_name[config.parent.name.rpartition("-")[0]].append(config.parent)
    old = [run for runs in by_name.values() for run in sorted(runs, key=_last_written)[:-keep]]
    return [run for run in sorted(old) if _last_written(run) < time.time() - RECENT_S and not in_use(run)]


def _last_written(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run, *run.iterdir()))


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.from_json((folder / FILE_NAME).read_bytes())
    except (OSError, EdgelineError):
        return None


def _teachers(config: Path) -> list[Path]:
    """The runs that teach a run."""
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("train", {}).get("teacher", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [Path(each).resolve() for each in found]


def _make_writable(folder: Path) -> None:
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        path.chmod(path.stat().st_mode | 0o700)


def _sized(folders: Iterable[Path]) -> tuple[Prunable, ...]:
    found = []
    for folder in folders:
        size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
        found.append(Prunable(path=folder, bytes=size))
    return tuple(found)
