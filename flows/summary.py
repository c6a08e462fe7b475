"""The summary of a finished run: for the terminal, `--json`, Python and the Prefect UI."""

import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from shutil import which
from typing import TYPE_CHECKING, Any

from edgeline.export import file_names
from edgeline.export.publishing.variant_table import figures, int8_line
from edgeline.export.records import Record
from edgeline.export.verification.report import Accuracy, FailedVariant, VariantResult, VerificationReport
from edgeline.pipeline.evaluation.report import Share, read_evaluation
from edgeline.pipeline.runs.findings import StepFinding
from edgeline.pipeline.runs.run import Run, StepResult, run_findings
from edgeline.serve.artifact.manifest import FILE_NAME as MANIFEST
from edgeline.serve.artifact.manifest import Manifest

if TYPE_CHECKING:
    from rich.table import Table

MEGABYTE = 1e6


class StepSummary(Record):
    """One step of a run."""

    name: str
    folder: str
    reused: bool
    """Whether the result existed and was reused."""
    seconds: float


class Summary(Record):
    """The figures of a finished run."""

    artifact: str
    """Its folder."""
    name: str
    version: int
    run: str
    """Its folder."""
    backbone: str
    trained_on: str
    images: dict[str, int]
    """By split."""
    classes: int
    top1: Share
    """Of the network, on the test split."""
    shipped_top1: Accuracy | None
    """Of the ONNX file."""
    macro_f1: float
    ece_before: float
    """Expected calibration error, before temperature scaling."""
    ece_after: float
    max_difference: float
    top1_agreement: float
    verified_images: int
    p50_ms: float
    model_bytes: int
    variants: tuple[dict[str, Any], ...]
    """As `variant_table.figures` makes them; a name and the reason of one that is not shipped."""
    int8: str | None
    artifact_bytes: int
    steps: tuple[StepSummary, ...]
    findings: tuple[StepFinding, ...]
    """What the steps noticed, in order."""


def summarize(run: Run, steps: list[StepResult]) -> Summary:
    """Collect the figures of a run.

    Args:
        run: finished up to its last step.
        steps: the result of each step, `publish` last.
    """
    artifact = steps[-1].folder
    manifest = Manifest.from_json((artifact / MANIFEST).read_bytes())
    evaluation = read_evaluation(artifact)
    verification = read_verification(artifact)
    assert verification.reference is not None, "only a verified model is published"
    return Summary(
        artifact=str(artifact),
        name=manifest.name,
        version=manifest.version,
        run=str(run.folder),
        backbone=manifest.provenance["backbone"],
        trained_on=manifest.provenance["trained_on"],
        images=manifest.provenance["images"],
        classes=len(manifest.labels),
        top1=evaluation.top1,
        shipped_top1=verification.test_accuracy,
        macro_f1=evaluation.macro.f1,
        ece_before=evaluation.calibration.ece_before,
        ece_after=evaluation.calibration.ece_after,
        max_difference=verification.max_difference,
        top1_agreement=verification.top1_agreement,
        verified_images=verification.images.total,
        p50_ms=list(verification.reference.latency.values())[-1].p50_ms,
        model_bytes=manifest.file(manifest.variants[0].file).size,
        variants=tuple(_variant_figures(entry) for entry in (verification.reference, *verification.variants)),
        int8=int8_line(verification),
        artifact_bytes=sum(entry.size for entry in manifest.files),
        steps=tuple(StepSummary(**asdict(step) | {"folder": str(step.folder)}) for step in steps),
        findings=run_findings(run),
    )


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """A summary as the rows of a short table: a label and a value."""
    top1, images = summary.top1, summary.images
    return [
        ("artifact", f"{summary.name} version {summary.version}"),
        ("report", str(Path(summary.artifact, "report.html"))),
        ("run", summary.run),
        ("backbone", f"{summary.backbone}, trained on {summary.trained_on}"),
        ("images", f"{images['train']} train, {images['val']} validation, {images['test']} test; {summary.classes} classes"),
        ("accuracy (test)", f"{_percent(top1)} ({top1.correct} of {top1.total})"),
        ("calibration error", f"{summary.ece_after:.3f} (before temperature {summary.ece_before:.3f})"),
        (
            "ONNX against PyTorch",
            f"max difference {summary.max_difference:.1e}, top-1 agreement {summary.top1_agreement:.2%}, "
            f"{summary.verified_images} images",
        ),
        ("size", f"model {summary.model_bytes / MEGABYTE:.1f} MB, artifact {summary.artifact_bytes / MEGABYTE:.1f} MB"),
        ("p50 latency", f"{summary.p50_ms:.1f} ms per image"),
        *([("int8", summary.int8)] if summary.int8 else []),
        ("steps", ", ".join(f"{step.name} {_duration(step)}" for step in summary.steps)),
    ]


def summary_table(summary: Summary) -> "Table":
    """A summary as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in summary_rows(summary):
        table.add_row(f"[bold]{label}[/]", escape(value))
    return table


def read_verification(artifact: str | Path) -> VerificationReport:
    """The verification report in an artifact's folder."""
    return VerificationReport.read(Path(artifact) / file_names.VERIFICATION)


def next_commands(summary: Summary, image: str | None, run: Run) -> list[tuple[str, str]]:
    """The commands to try next, each with its purpose.

    Args:
        summary: of the run.
        image: one of its photos, if there is one.
        run: its folder has the settings, with which it can be repeated.
    """
    artifact = str(Path(summary.artifact).parent)
    here = Path(sys.executable).with_name("edgeline")
    short = str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
    edgeline = "edgeline" if which("edgeline") else quote(short)
    return [
        (f"{edgeline} serve {quote(artifact)}", "serve it over HTTP, with a page for phones"),
        (f"{edgeline} predict {quote(artifact)} {quote(image or 'photo.jpg')}", "classify an image"),
        (f"{edgeline} check {quote(artifact)}", "run its self-test, here or on a device"),
        (f"{edgeline} run --data FOLDER", "train on your own photos, one folder per class")
        if run.config.data == "digits"
        else (
            f"{edgeline} retrain --config {quote(str(run.folder / 'config.json'))}",
            "train again on changed data, and use the result if it is not worse",
        ),
    ]


def _variant_figures(variant: VariantResult) -> dict[str, Any]:
    if isinstance(variant, FailedVariant):
        return {"name": variant.name, "passed": False, "why": "; ".join(variant.problems)}
    return {"name": variant.name, **figures(variant)}


def _percent(share: Share) -> str:
    return f"{share.value:.2%}, 95 % interval {share.low:.2%} to {share.high:.2%}"


def _duration(step: StepSummary) -> str:
    return "reused" if step.reused else f"{step.seconds:.1f} s"
