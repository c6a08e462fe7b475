"""Add a version to a store: stage beside, prove, flush, rename.

`<store>/<name>/<version>/` appears by one rename and never changes. Whatever is killed before that leaves a hidden
`.staging-*` folder that no reader looks at and the next publisher removes; whatever is killed after it leaves the new
version whole. Publishing the same content again gives the version that has it.
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
from edgeline.serve.artifact.reader import open_artifact, versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError, StoreError

STAGING = ".staging-"


def publish_folder(folder: Path, content: str, write: Callable[[Path, int], object]) -> tuple[Path, bool]:
    """Publish an artifact as the next version under a name's folder, or find the newest version to be just that.

    Args:
        folder: `<store>/<name>`, made where it is absent.
        content: digest of all that the artifact is made from; its manifest names it as `provenance.content_sha256`.
        write: writes the artifact into the empty folder it is given, under the version number it is given.

    Returns:
        The published folder, and whether it was there before.

    Raises:
        ArtifactError: the staged artifact does not prove itself on this machine.
        StoreError: the store cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_publisher(folder):
            _remove_leftovers(folder)
            found = find_content(folder, content)
            target = _add_version(folder, write) if found is None else found
    except OSError as error:
        reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        raise StoreError(f"{folder} cannot be written: {reason}; nothing was published") from error
    _confirm(target)
    return target, found is not None


def find_content(folder: Path, content: str) -> Path | None:
    """The newest version under a name's folder, if it is this content and whole."""
    for version in versions(folder)[-1:]:
        try:
            artifact = open_artifact(folder / str(version))
        except EdgelineError:
            return None
        if artifact.manifest.provenance.get("content_sha256") == content:
            return artifact.folder
    return None


def _add_version(folder: Path, write: Callable[[Path, int], object]) -> Path:
    staging = folder / f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        staging.mkdir()
        version = max(versions(folder), default=0) + 1
        write(staging, version)
        Classifier.open(staging)  # what cannot prove itself here is not published
        for path in staging.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        sync_tree(staging)
        target = folder / str(version)
        _rename(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def _rename(staging: Path, target: Path) -> None:
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise StoreError(f"{target} was published by somebody who holds no lock on this store; publish again") from error


def _confirm(target: Path) -> None:
    """Flush the rename, and the folders that it may have been the first in.

    Also for a version that was found: whoever published it may have been stopped before this.
    """
    try:
        for folder in target.parents[:3]:
            sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"{target} is published, but the disk does not confirm it ({error.strerror or error}), so a power cut may undo it; "
            "publish again once the disk is well"
        ) from error


@contextmanager
def _only_publisher(folder: Path) -> Iterator[None]:
    """Publishers of one name wait for each other; the lock dies with its process."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed publishers staged; with the lock held, none of it can be a living one's."""
    for path in folder.glob(f"{STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)
