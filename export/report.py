"""The two pages that people read: `report.html`, one file that needs no network, and `card.md`."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from export import table
from pipeline.evaluate import Evaluation
from pipeline.run import Run
from serve.provenance import machine_line

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
        caption=table.CAPTION,
        forms=table.rows(verification),
        left_out=table.left_out(verification),
        int8=table.int8_line(verification),
        origins=table.origins(verification, provenance),
        confusion=_data_uri(run.step("evaluate") / "confusion.png"),
        reliability=_data_uri(run.step("evaluate") / "reliability.png"),
    )
    path.write_text(page, encoding="utf-8")


def write_card(path: Path, name: str, evaluation: Evaluation, verification: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write the model card: what it is for, how good it is, what it was proven on, and its limits."""
    top1, images, calibration = evaluation.top1, provenance["images"], evaluation.calibration
    held_out, int8 = verification["images"]["held_out"], table.int8_line(verification)
    more = "".join(f"\n{line}.\n" for line in (*table.left_out(verification), *([f"int8: {int8}"] if int8 else [])))
    text = f"""# {name}

An image classifier with {len(evaluation.labels)} classes, on the backbone {provenance["backbone"]} ({provenance["strategy"]}
trained), packaged by edgeline {provenance["edgeline"]}.

| | |
|---|---|
| accuracy on {evaluation.images} held-out images | {top1.value:.1%} (95 % interval {top1.low:.1%} to {top1.high:.1%}) |
| macro F1 | {evaluation.macro.f1:.3f} |
| expected calibration error | {calibration.ece_after:.3f} (before temperature scaling {calibration.ece_before:.3f}) |
| largest difference to PyTorch | {verification["max_difference"]:.2g}, {held_out} held-out images and a hard set |
| trained on | {images["train"]} images, validated on {images["val"]} |

## The model and its variants

{_markdown(table.rows(verification))}

{table.CAPTION} Taken on {machine_line(verification["reference"]["taken"]["machine"])}.
{more}
## Intended use

Photos like those it was trained on. It knows its {len(evaluation.labels)} classes and nothing else: it has no answer for
"none of them".

## Limits

The figures hold for pictures drawn like the held-out ones. `report.html` has them class by class, with the most confident
mistakes.

## How the figures were taken

{_markdown(table.origins(verification, provenance))}

ARTIFACT is this folder. RUN is the folder that `edgeline prepare` prints for the same data and settings (`provenance` in
`manifest.json`); a finished step is reused, so remove its folder there to take its figures again.
"""
    path.write_text(text, encoding="utf-8")


def _markdown(lines: list[dict[str, str]]) -> str:
    """Rows by the headings of their columns as a table."""
    table = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
