"""The table of a model's variants: the float32 reference first, all measured in the same way.

The only code that makes its rows, for the terminal, the report, the card, the manifest and Prefect.
"""

from collections.abc import Mapping
from typing import Any

from edgeline.export.records import MeasuredOn
from edgeline.export.verification.report import PassedVariant, UnrunVariant, VerificationReport
from edgeline.serve.runtime.provenance import machine_line

CAPTION = (
    "Each variant against PyTorch, on the same images and by the same path. Accuracy and its drop have 95 % intervals, the "
    "latter paired; times are p50 / p95 of one image; start and memory are of a process that loads the model and runs it once."
)


def figures(variant: PassedVariant | UnrunVariant) -> dict[str, Any]:
    """A variant's figures in short, as JSON types: `verification` of a variant in the manifest."""
    entry = variant.to_dict()
    if isinstance(variant, UnrunVariant):
        return {name: entry[name] for name in ("passed", "not_run", "structure", "bytes")}
    similarity = entry["similarity"]
    return {
        "passed": True,
        **{name: similarity[name] for name in ("images", "max_difference", "top1_agreement", "sqnr_db", "kl")},
        **{name: entry[name] for name in ("bytes", "accuracy", "latency", "start", "measured_on")},
        **({} if variant.saturates is None else {"saturates": variant.saturates}),
    }


def rows(verification: VerificationReport) -> list[dict[str, str]]:
    """A row for each variant that ships and was run, its cells by the heading of their column."""
    return [_row(variant) for variant in verification.measured]


def int8_line(verification: VerificationReport) -> str | None:
    """On which processor int8 was chosen, for which, and how; None if the run has no int8."""
    int8 = verification.int8
    if int8 is None or int8.measured_on is None:
        return None
    machine = int8.measured_on.machine
    setting = "on" if int8.exact_precision_setting else "off"
    may_saturate = {variant.saturates for variant in verification.measured if variant.saturates is not None}
    saturation = ""
    if may_saturate:
        saturation = (
            "; x86 without VNNI needs the exact-precision setting, which edgeline applies there and ORT files ignore"
            if True in may_saturate
            else "; no two products can saturate, so x86 without VNNI computes the same at full speed"
        )
    return (
        f"{int8.chosen or 'none chosen'}, for {int8.target}; measured on {int8.evaluated_on.images} validation images on "
        f"{machine['processor']} ({machine['cpu']}), exact-precision setting {setting}; calibrated on "
        f"{int8.calibration.images} training images (sha256 {int8.calibration.sha256[:12]}){saturation}"
    )


def origins(verification: VerificationReport, provenance: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each group of figures: when, where and with what they were measured, and the command to measure them again.

    Args:
        verification: one that passed.
        provenance: of the manifest; `measured_on` has the other groups.
    """
    groups = {name: MeasuredOn.model_validate(value) for name, value in provenance["measured_on"].items()}
    if verification.reference is not None:
        groups["times and memory"] = verification.reference.measured_on
    return [
        {
            "Figures": name,
            "Command": measured_on.command,
            "Date": measured_on.date,
            "Machine": machine_line(measured_on.machine),
            "Versions": ", ".join(f"{package} {number}" for package, number in measured_on.versions.items()),
            "Options": ", ".join(f"{key} {_plain(value)}" for key, value in measured_on.options.items()),
        }
        for name, measured_on in groups.items()
    ]


def _row(variant: PassedVariant) -> dict[str, str]:
    similarity, accuracy = variant.similarity, variant.accuracy
    times = {f"ms, {_threads(key)}": f"{t.p50_ms:.1f} / {t.p95_ms:.1f}" for key, t in variant.latency.items()}
    return {
        "Variant": variant.name,
        "MB": f"{variant.bytes / 1e6:.1f}",
        "Accuracy, %": "" if accuracy is None else _with_interval(accuracy.top1, accuracy.top1_interval, 100),
        "Drop, points": "" if accuracy is None else _with_interval(accuracy.drop_points, accuracy.drop_interval_points),
        "Same class, %": f"{100 * similarity.top1_agreement:.2f}",
        "SQNR, dB": f"{similarity.sqnr_db:.0f}",
        "KL": f"{similarity.kl:.1g}",
        "Largest difference": f"{similarity.max_difference:.1g}",
        **times,
        "Start, ms": f"{variant.start.total_ms:.0f}",
        "Peak, MB": f"{variant.start.peak_mb:.0f}",
    }


def _with_interval(value: float, interval: tuple[float, float], factor: float = 1) -> str:
    low, high = (factor * end for end in interval)
    return f"{factor * value:.2f} ({low:.2f} to {high:.2f})"


def _threads(key: str) -> str:
    count = key.removeprefix("threads_")
    return f"{count} thread" if count == "1" else f"{count} threads"


def _plain(value: Any) -> str:
    """A setting's value on one line."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(inner)}" for key, inner in value.items())
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
