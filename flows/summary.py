"""What a finished run comes to: for the terminal, for `--json` and for the Prefect UI."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from shutil import which
from typing import Any

from edgeline.export import file_names
from edgeline.export.publishing.variant_table import figures, int8_line
from edgeline.export.verification.report import FailedVariant, VariantResult, VerificationReport
from edgeline.pipeline.runs.run import Run, StepResult

MEGABYTE = 1e6


def summarize(run: Run, steps: list[StepResult]) -> dict[str, Any]:
    """The figures of a run as JSON types.

    Args:
        run: finished up to its last step.
        steps: what each left behind, `publish` last.
    """
    artifact = steps[-1].folder
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    evaluation = json.loads((artifact / "evaluation.json").read_text(encoding="utf-8"))
    verification = read_verification({"artifact": str(artifact)})
    assert verification.reference is not None, "what is published passed"
    return {
        "artifact": str(artifact),
        "name": manifest["name"],
        "version": manifest["version"],
        "run": str(run.folder),
        "backbone": manifest["provenance"]["backbone"],
        "trained_on": manifest["provenance"]["trained_on"],
        "images": manifest["provenance"]["images"],
        "classes": len(manifest["labels"]),
        "top1": evaluation["top1"],
        "shipped_top1": verification.test_accuracy and verification.test_accuracy.to_dict(),
        "macro_f1": evaluation["macro"]["f1"],
        "ece_before": evaluation["calibration"]["ece_before"],
        "ece_after": evaluation["calibration"]["ece_after"],
        "max_difference": verification.max_difference,
        "top1_agreement": verification.top1_agreement,
        "verified_images": verification.images.total,
        "p50_ms": list(verification.reference.latency.values())[-1].p50_ms,
        "model_bytes": next(entry["size"] for entry in manifest["files"] if entry["path"] == manifest["variants"][0]["file"]),
        "variants": [_variant_figures(entry) for entry in (verification.reference, *verification.variants)],
        "int8": int8_line(verification),
        "artifact_bytes": sum(entry["size"] for entry in manifest["files"]),
        "steps": [asdict(step) | {"folder": str(step.folder)} for step in steps],
    }


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as a short table of (what, how much)."""
    top1, images = summary["top1"], summary["images"]
    return [
        ("artifact", f"{summary['name']} version {summary['version']}"),
        ("backbone", f"{summary['backbone']}, trained on {summary['trained_on']}"),
        ("images", f"{images['train']} train, {images['val']} validation, {images['test']} test; {summary['classes']} classes"),
        ("accuracy (test)", f"{_percent(top1)} ({top1['correct']} of {top1['total']})"),
        ("calibration error", f"{summary['ece_after']:.3f} (before temperature {summary['ece_before']:.3f})"),
        (
            "ONNX against PyTorch",
            f"max difference {summary['max_difference']:.1e}, same best class {summary['top1_agreement']:.2%}, "
            f"{summary['verified_images']} images",
        ),
        ("size", f"model {summary['model_bytes'] / MEGABYTE:.1f} MB, artifact {summary['artifact_bytes'] / MEGABYTE:.1f} MB"),
        ("p50 latency", f"{summary['p50_ms']:.1f} ms an image"),
        *([("int8", summary["int8"])] if summary["int8"] else []),
        (
            "steps",
            ", ".join(f"{s['name']} {_took(s)}" for s in summary["steps"]),
        ),
    ]


def read_verification(summary: dict[str, Any]) -> VerificationReport:
    """The release gate's report on a summary's artifact."""
    return VerificationReport.read(Path(summary["artifact"]) / file_names.VERIFICATION)


def _variant_figures(variant: VariantResult) -> dict[str, Any]:
    if isinstance(variant, FailedVariant):
        return {"name": variant.name, "passed": False, "why": "; ".join(variant.problems)}
    return {"name": variant.name, **figures(variant)}


def _percent(share: dict[str, Any]) -> str:
    return f"{share['value']:.2%}, 95 % interval {share['low']:.2%} to {share['high']:.2%}"


def _took(step: dict[str, Any]) -> str:
    return "reused" if step["reused"] else f"{step['seconds']:.1f} s"


def next_commands(summary: dict[str, Any], image: str | None) -> list[tuple[str, str]]:
    """The commands worth trying next, each with what it does."""
    artifact = str(Path(summary["artifact"]).parent)
    here = Path(sys.executable).with_name("edgeline")
    short = str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
    edgeline = "edgeline" if which("edgeline") else quote(short)
    return [
        (f"{edgeline} serve {quote(artifact)}", "answer over HTTP, and let phones download it"),
        (f"{edgeline} predict {quote(artifact)} {quote(image or 'photo.jpg')}", "classify a picture"),
        (f"{edgeline} check {quote(artifact)}", "prove it, here or on a device"),
        (f"{edgeline} run --data FOLDER", "the same with your own photos, one folder a class"),
    ]
