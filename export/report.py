"""The two pages that people read: `report.html`, one file that needs no network, and `card.md`."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.evaluate import Evaluation
from pipeline.run import Run

ENVIRONMENT = Environment(loader=PackageLoader("export", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def write_report(
    path: Path, run: Run, evaluation: Evaluation, verification: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Write the report: figures, plots, the gate's findings, provenance. All text from the data is escaped."""
    page = ENVIRONMENT.get_template("report.html").render(
        name=run.config.artifact_name,
        evaluation=evaluation,
        verification=verification,
        provenance=provenance,
        confusion=_data_uri(run.step("evaluate") / "confusion.png"),
        reliability=_data_uri(run.step("evaluate") / "reliability.png"),
    )
    path.write_text(page, encoding="utf-8")


def write_card(path: Path, name: str, evaluation: Evaluation, verification: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write the model card: what it is for, how good it is, what it was proven on, and its limits."""
    top1, images, calibration = evaluation.top1, provenance["images"], evaluation.calibration
    variants = "".join(_variant_line(entry) for entry in verification["variants"])
    held_out, machine = verification["images"]["held_out"], verification["machine"]
    text = f"""# {name}

An image classifier with {len(evaluation.labels)} classes, on the backbone {provenance["backbone"]} ({provenance["strategy"]}
trained), packaged by edgeline {provenance["edgeline"]}.

| | |
|---|---|
| accuracy on {evaluation.images} held-out images | {top1.value:.1%} (95 % interval {top1.low:.1%} to {top1.high:.1%}) |
| macro F1 | {evaluation.macro.f1:.3f} |
| expected calibration error | {calibration.ece_after:.3f} (before temperature scaling {calibration.ece_before:.3f}) |
| largest difference to PyTorch | {verification["max_difference"]:.2g}, {held_out} held-out images and a hard set |
| p50 latency | {verification["latency"]["p50_ms"]:.1f} ms on {machine["cpu"]}, {machine["cores"]} threads |
{variants}| trained on | {images["train"]} images, validated on {images["val"]} |

## Intended use

Photos like those it was trained on. It knows its {len(evaluation.labels)} classes and nothing else: it has no answer for
"none of them".

## Limits

The figures hold for pictures drawn like the held-out ones. `report.html` has them class by class, with the most confident
mistakes.
"""
    path.write_text(text, encoding="utf-8")


def _variant_line(entry: dict[str, Any]) -> str:
    if entry["passed"] is None:
        return f"| {entry['name']} | {entry['bytes'] / 1e6:.1f} MB, not run here: {entry['not_run']} |\n"
    if not entry["passed"]:
        return f"| {entry['name']} | not shipped: {'; '.join(entry['problems'])} |\n"
    likeness = entry["likeness"]
    return (
        f"| {entry['name']} | {entry['bytes'] / 1e6:.1f} MB, {entry['latency']['threads_1']['p50_ms']:.1f} ms on one thread, "
        f"same best class on {likeness['top1_agreement']:.2%} of {likeness['images']} images |\n"
    )


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
