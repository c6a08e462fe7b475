"""Publish a verified run. Only results that were verified, and have not changed since, get into the store."""

from pathlib import Path

from edgeline.export import file_names
from edgeline.export.publishing.store import publish_folder
from edgeline.export.verification.report import VerificationReport
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.receipts import is_current, read_receipt, result_digest
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.pipeline.runs.step import CODE_CACHE, step_key
from edgeline.serve.errors import VerificationError


def publish(run: Run) -> StepResult:
    """Publish a run's artifact, or find the version that already has its content.

    Returns:
        The published folder.

    Raises:
        VerificationError: the run has not passed verification, or changed since.
        ArtifactError: the staged artifact fails its self-test on this machine.
        StoreError: the store cannot be written.
    """
    verification = read_verification(run)
    content = content_digest(run)

    def write(folder: Path, version: int) -> None:
        # Imports torch, which finding a published version does not need.
        from edgeline.export.publishing.bundle import write_bundle

        write_bundle(run, folder, verification, version=version, content=content)

    target, reused = publish_folder(run.config.store / run.config.artifact_name, content, write)
    return StepResult("publish", target, reused=reused, seconds=0.0)


def content_digest(run: Run) -> str:
    """Digest of all that a run's artifact is made from."""
    steps = {name: result_digest(run.step(name)) for name in ("train", "evaluate", "export", "verify")}
    settings = {"publish": run.config.publish.model_dump(), "name": run.config.artifact_name}
    code = code_digest("edgeline.export.publishing.bundle", cache=run.config.cache / CODE_CACHE)
    return step_key({"steps": steps, "settings": settings}, code)


def read_verification(run: Run) -> VerificationReport:
    """Read a run's verification, which must have passed on the very results that its steps have now.

    Raises:
        VerificationError: it did not, or there is none.
    """
    if (failed := run.step("verify.partial") / file_names.VERIFICATION).exists():
        raise VerificationError(
            f"the last verification of this run did not finish or did not pass; see {failed}", code="not_verified"
        )
    try:
        report = VerificationReport.read(run.step("verify") / file_names.VERIFICATION)
    except VerificationError as error:
        raise VerificationError(
            f"{run.step('verify')} has no verification ({error}); run `edgeline verify` first", code="not_verified"
        ) from error
    if not report.passed or report.model_sha256 != _digest(run.step("export") / file_names.MODEL):
        raise VerificationError(
            f"{run.step('export') / file_names.MODEL} is not the file that passed verification; verify it again",
            code="not_verified",
        )
    if changed := [name for name in (*file_names.VERIFIED, "verify") if not _is_whole(run.step(name))]:
        raise VerificationError(
            f"{run.folder}: the result of {', '.join(changed)} has changed since it was made; run the step again",
            code="not_verified",
        )
    if other := [name for name in file_names.VERIFIED if report.inputs.get(name) != result_digest(run.step(name))]:
        raise VerificationError(
            f"{run.folder}: {', '.join(other)} is not what was verified; run `edgeline verify` again", code="not_verified"
        )
    return report


def _digest(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None


def _is_whole(folder: Path) -> bool:
    """Whether a step's files are still those of its receipt."""
    receipt = read_receipt(folder)
    return receipt is not None and is_current(folder, receipt["key"])
