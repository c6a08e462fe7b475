"""Publish a verified run: stage beside, prove, flush, rename.

`<store>/<name>/<version>/` appears by one rename and never changes. Whatever is killed before that leaves a hidden
`.staging-*` folder that no reader looks at and the next publisher removes; whatever is killed after it leaves the new
version whole. Publishing the same content again gives the version that has it.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export import files
from pipeline.run import Run, StepResult
from pipeline.steps import digest_of, file_digest, result_digest, sync_folder, sync_tree
from serve.artifact import versions
from serve.classifier import Classifier
from serve.errors import EdgelineError, StoreError, VerificationError
from serve.manifest import FILE_NAME, Manifest

STAGING = ".staging-"


def publish(run: Run) -> StepResult:
    """Publish a run's artifact, or find the version that has its content already.

    Returns:
        The published folder.

    Raises:
        VerificationError: the run has not passed verification.
        ArtifactError: the staged artifact does not prove itself on this machine.
        StoreError: the store cannot be written.
    """
    verification = read_verification(run)
    content = content_digest(run)
    folder = run.config.store / run.config.artifact_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_publisher(folder):
            _remove_leftovers(folder)
            if (found := find_content(folder, content)) is not None:
                return StepResult("publish", found, reused=True, seconds=0.0)
            return StepResult("publish", _publish(run, folder, verification, content), reused=False, seconds=0.0)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}; nothing was published") from error


def content_digest(run: Run) -> str:
    """Digest of all that a run's artifact is made from."""
    steps = {name: result_digest(run.step(name)) for name in ("train", "evaluate", "export", "verify")}
    return digest_of({"steps": steps, "publish": run.config.publish.model_dump(), "name": run.config.artifact_name})


def find_content(folder: Path, content: str) -> Path | None:
    """The newest version under a name's folder, if it is this content."""
    for version in versions(folder)[-1:]:
        try:
            manifest = Manifest.from_json((folder / str(version) / FILE_NAME).read_bytes())
        except (OSError, EdgelineError):
            return None
        if manifest.provenance.get("content_sha256") == content:
            return folder / str(version)
    return None


def read_verification(run: Run) -> dict[str, Any]:
    """Read a run's verification, which must have passed on the very model file that the export step holds.

    Raises:
        VerificationError: it did not, or there is none.
    """
    try:
        verification: dict[str, Any] = json.loads((run.step("verify") / files.VERIFICATION).read_text(encoding="utf-8"))
        passed, verified = verification["passed"], verification["model_sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise VerificationError(
            f"{run.step('verify')} holds no verification; run `edgeline verify` first", code="not_verified"
        ) from error
    if passed is not True or verified != file_digest(run.step("export") / files.MODEL):
        raise VerificationError(
            f"{run.step('export') / files.MODEL} is not the file that passed verification; verify it again", code="not_verified"
        )
    return verification


def _publish(run: Run, folder: Path, verification: dict[str, Any], content: str) -> Path:
    from export.bundle import write_bundle  # brings torch, which finding a published version does not need

    staging = folder / f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        version = max(versions(folder), default=0) + 1
        write_bundle(run, staging, verification, version=version, content=content)
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
    sync_folder(folder)
    sync_folder(folder.parent)
    return target


def _rename(staging: Path, target: Path) -> None:
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise StoreError(f"{target} was published by somebody who holds no lock on this store; publish again") from error


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
