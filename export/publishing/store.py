"""Add a version to a store: stage next to it, run the self-test, flush, rename into place.

`<store>/<name>/<version>/` appears by one rename (`_rename_into_place`) and never changes. A publisher that is killed before
the rename leaves a hidden `.staging-*` folder, which readers ignore and the next publisher removes; one that is killed after
it leaves the complete version. Publishing the same content again returns the version that has it.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeline.pipeline.runs.atomic_files import sync_folder, sync_tree
from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.reader import Artifact, open_artifact, versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError, StoreError

STAGING = ".staging-"


def publish_folder(folder: Path, content: str, write: Callable[[Path, int], object]) -> tuple[Path, bool]:
    """Publish an artifact as the next version under a name's folder, unless the newest version has the same content.

    Args:
        folder: `<store>/<name>`, created if absent.
        content: digest of all that the artifact is made from; its manifest names it as `provenance.content_sha256`.
        write: writes the artifact into an empty folder, under a version number.

    Returns:
        The published folder, and whether it existed before.

    Raises:
        ArtifactError: the staged artifact fails its self-test on this machine.
        StoreError: the store cannot be written.
    """
    with store_errors(folder, "nothing was published"):
        folder.mkdir(parents=True, exist_ok=True)
        with store_lock(folder):
            _remove_leftovers(folder)
            found = find_content(folder, content)
            target = _add_version(folder, write) if found is None else found
    _confirm(target)
    return target, found is not None


def add_version(folder: Path, source: Artifact) -> tuple[Path, bool]:
    """Add a version that was published elsewhere, under its own number.

    Args:
        folder: `<store>/<name>`, created if absent.
        source: the artifact, of which all files match the manifest.

    Returns:
        The published folder, and whether it existed before.

    Raises:
        ArtifactError: the artifact fails its self-test on this machine.
        StoreError: another artifact has this number here, or the store cannot be written.
    """
    target = folder / str(source.manifest.version)
    with store_errors(folder, "nothing was published"):
        folder.mkdir(parents=True, exist_ok=True)
        with store_lock(folder):
            _remove_leftovers(folder)
            if existed := target.is_dir():
                if open_artifact(target).manifest_sha256 != source.manifest_sha256:
                    raise StoreError(
                        f"{target} is published here with other content; add this version to another store, with --artifacts"
                    )
            else:
                _add_version(folder, lambda staging, _: _copy(source, staging), source.manifest.version)
    _confirm(target)
    return target, existed


def _copy(source: Artifact, staging: Path) -> None:
    for path in (FILE_NAME, *(entry.path for entry in source.manifest.files)):
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / path, staging / path)


def find_content(folder: Path, content: str) -> Path | None:
    """The newest version under a name's folder, if it has this content and is complete."""
    for version in versions(folder)[-1:]:
        try:
            artifact = open_artifact(folder / str(version))
        except EdgelineError:
            return None
        if artifact.manifest.provenance.get("content_sha256") == content:
            return artifact.folder
    return None


def _add_version(folder: Path, write: Callable[[Path, int], object], version: int | None = None) -> Path:
    version = version or max(versions(folder), default=0) + 1
    staging = folder / f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        staging.mkdir()
        write(staging, version)
        Classifier.open(staging)  # what fails its self-test here is not published
        for path in (staging, *staging.rglob("*")):
            # Read-only files, in folders that only their owner can change, whatever the umask is.
            path.chmod(path.stat().st_mode & 0o755 if path.is_dir() else 0o444)
        sync_tree(staging)
        target = folder / str(version)
        _rename_into_place(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def _rename_into_place(staging: Path, target: Path) -> None:
    """Publish: the version exists from here on, complete."""
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise StoreError(f"{target} was published by a process without the store's lock; publish again") from error


def _confirm(target: Path) -> None:
    """Flush the rename, and the folders that it may have created.

    Also for a version that was found: its publisher may have been stopped before this.
    """
    try:
        for folder in target.parents[:3]:
            sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"{target} is published, but the disk does not confirm it ({error.strerror or error}), so a power failure may undo "
            "it; publish again once the disk works"
        ) from error


@contextmanager
def store_errors(folder: Path, outcome: str = "nothing was changed") -> Iterator[None]:
    """Turn errors of the system into a StoreError that ends with the outcome."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        raise StoreError(f"{folder} cannot be written: {reason}; {outcome}") from error


@contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """A process that changes a name in the store waits for others that do; the lock ends with its process."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed publishers staged; while the lock is held, no other publisher is running."""
    for path in folder.glob(f"{STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)
