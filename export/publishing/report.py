"""The pages of an artifact for people: `report.html`, which works offline, `card.md` and `golden/README.md`."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeline.export.publishing import variant_table
from edgeline.export.verification.report import VerificationReport
from edgeline.pipeline.evaluation.findings import describe_curve
from edgeline.pipeline.evaluation.insight import LabelError, MistakePictures, read_insight
from edgeline.pipeline.evaluation.report import Evaluation
from edgeline.pipeline.explanation.pictures import data_uri
from edgeline.pipeline.runs.run import Run, run_findings
from edgeline.pipeline.training.search.report import read_sweep, sweep_rows
from edgeline.serve.runtime.provenance import machine_line

ENVIRONMENT = Environment(
    loader=PackageLoader("edgeline.export.publishing"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)

PLOTS = ("confusion", "reliability", "history", "sweep", "learning_curve", "embedding")
PICTURE_FIELDS = ("picture", "cam", "gradient")
MAX_CONFUSED = 3


def write_report(
    path: Path, run: Run, evaluation: Evaluation, verification: VerificationReport, provenance: dict[str, Any]
) -> None:
    """Write the report: figures, plots, pictures, verification, provenance. All text from the data is escaped."""
    folder = run.step("evaluate")
    insight = read_insight(folder)
    swept = read_sweep(run.step("train"))
    pictured = insight if run.config.publish.pictures else None
    page = ENVIRONMENT.get_template("report.html").render(
        name=run.config.artifact_name,
        evaluation=evaluation,
        verification=verification,
        provenance=provenance,
        caption=variant_table.CAPTION,
        variants=variant_table.rows(verification),
        findings=run_findings(run),
        int8=variant_table.int8_line(verification),
        origins=variant_table.origins(verification, provenance),
        swept=swept,
        sweep_rows=sweep_rows(swept) if swept else [],
        insight=insight,
        curve=describe_curve(insight.learning_curve) if insight and insight.learning_curve else "",
        label_errors=[_with_pictures(error, folder) for error in pictured.label_errors if error.picture] if pictured else [],
        mistakes=[_with_pictures(mistake, folder) for mistake in pictured.mistakes] if pictured else [],
        confused=[_confused_with(evaluation, index) for index in range(len(evaluation.labels))],
        **{name: _plot(folder / f"{name}.png") for name in PLOTS},
    )
    path.write_text(page, encoding="utf-8")


def write_card(
    path: Path, run: Run, evaluation: Evaluation, verification: VerificationReport, provenance: dict[str, Any]
) -> None:
    """Write the model card: intended use, accuracy, verification and limits."""
    assert verification.reference is not None, "a report that passed has the reference's figures"
    top1, images, calibration = evaluation.top1, provenance["images"], evaluation.calibration
    held_out, int8 = verification.images.held_out, variant_table.int8_line(verification)
    int8_line = f"\nint8: {int8}.\n" if int8 else ""
    findings = "".join(f"- {_text(finding.message)} ({finding.step})\n" for finding in run_findings(run))
    text = f"""# {run.config.artifact_name}

An image classifier with {len(evaluation.labels)} classes, on the backbone {provenance["backbone"]} ({provenance["strategy"]}
trained), packaged by edgeline {provenance["edgeline"]}.

| | |
|---|---|
| accuracy on {evaluation.images} held-out images | {top1.value:.1%} (95 % interval {top1.low:.1%} to {top1.high:.1%}) |
| macro F1 | {evaluation.macro.f1:.3f} |
| expected calibration error | {calibration.ece_after:.3f} (before temperature scaling {calibration.ece_before:.3f}) |
| largest difference to PyTorch | {verification.max_difference:.2g}, {held_out} held-out images and stress images |
| trained on | {images["train"]} images, validated on {images["val"]} |

## The model and its variants

{_markdown(variant_table.rows(verification))}

{variant_table.CAPTION} Measured on {machine_line(verification.reference.measured_on.machine)}.
{int8_line}
## What was found

{findings or "Nothing that needs attention."}
## Intended use

Photos like those it was trained on. It has {len(evaluation.labels)} classes and assigns every photo to one of them:
there is no class for "none of them".

## Limits

The figures apply to photos like the held-out ones. `report.html` has them by class, with the most confident mistakes.

## How the figures were measured

{_markdown(variant_table.origins(verification, provenance))}

ARTIFACT is this folder. RUN is the folder that `edgeline prepare` prints for the same data and settings (`provenance` in
`manifest.json`); a finished step is reused, so remove its folder there to measure its figures again.
"""
    path.write_text(text, encoding="utf-8")


def write_golden_page(path: Path, golden: dict[str, Any]) -> None:
    """Write the page about golden samples: what they are, how to run them, and what to do when one fails.

    Args:
        path: of the page, next to `golden.json`.
        golden: the content of `golden.json`; see `serve.artifact.golden`.
    """
    pixels, own = golden["pixel_tolerance"], golden.get("variants", {})
    lines = [_tolerance_line("every other variant" if own else "every variant", golden)]
    lines += [_tolerance_line(name, tolerances) for name, tolerances in own.items()]
    turned = golden["samples"][0]["file"].removeprefix("golden/")
    text = f"""# Golden samples

{len(golden["samples"])} held-out photos, the pixels they become, and the model's outputs for them on the machine that verified
it. A machine with the same outputs decodes, rotates, crops, resizes and computes as that one does. They test a machine, not
the model's accuracy. Run them on every new device, and again when its runtime, decoder or system changes.

| file | what |
|---|---|
| `golden.json` | the tolerances, and of each sample its files, `label`, `probabilities` and `logits` |
| `0.*`, `1.*`, ... | the photos, at most 1,024 pixels wide or high (one may have 2,048), with no metadata but an orientation |
| `{turned}` | stored on its side, with the EXIF tag for it: a decoder that ignores the tag fails here |
| `*.pixels.png` | the exact input of the model for the photo |

A variant that rounds more than the reference has its own expected outputs, under its name in each sample's `variants`.

## Run them

With edgeline, `edgeline check FOLDER`, where FOLDER contains `manifest.json`; it needs no training libraries.
On a device without Python, for each sample:

1. preprocess the photo according to the manifest's `preprocess`; the mean absolute difference from `*.pixels.png` must be at
   most {pixels:g} of 255;
2. run the model on your pixels: no probability may differ from the sample's by more than the first tolerance below;
3. run it on `*.pixels.png`: no logit may differ by more than the second, times the largest absolute logit of the sample (or
   times 1 if that is smaller).

| variant | probability | logit |
|---|---|---|
{"".join(lines)}
The tolerances leave room for another processor's rounding and, for pixels, another JPEG decoder. The photos were chosen so
that another filter, crop, channel order or model is noticed. Do not widen a tolerance to pass: find out what differs.

## When one fails

| what differs | look at |
|---|---|
| pixels of `{turned}` only | the EXIF orientation is ignored, or applied twice |
| pixels of the JPEGs only | the decoder: color management, or a decoder that scales while it decodes |
| pixels of all, edges shimmer | resizing without antialiasing; a graphics library's scaler does that |
| pixels of all, shifted | the crop: whole pixels, halves rounded to even, left and top rounded down |
| probabilities, though the pixels agree | the order of channels or axes, a second normalization, another model file |
| logits only | the same, hidden by a confident model; or lower precision: a delegate, an accelerator, half floats |
| int8 only, on x86 | a processor without VNNI, whose products saturate: `session.x64quantprecision` = 1 |
"""
    path.write_text(text, encoding="utf-8")


def _tolerance_line(name: str, golden: dict[str, Any]) -> str:
    return f"| {name} | {golden['tolerance']:g} | {golden.get('logit_tolerance', golden['tolerance']):g} |\n"


def _markdown(lines: list[dict[str, str]]) -> str:
    """Rows by the headings of their columns as a table."""
    table = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table)


def _text(message: str) -> str:
    """A message as Markdown text: nothing in it is a heading, link, image or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(message.split()))


def _confused_with(evaluation: Evaluation, index: int) -> str:
    """The classes that images of a class were most often taken for, with their numbers."""
    counts = [(count, label) for label, count in zip(evaluation.labels, evaluation.confusion[index], strict=True)]
    others = sorted((each for position, each in enumerate(counts) if position != index and each[0]), key=lambda each: -each[0])
    return ", ".join(f"{label} ({count})" for count, label in others[:MAX_CONFUSED])


def _with_pictures(record: LabelError | MistakePictures, folder: Path) -> dict[str, Any]:
    """A record's fields, with the pictures instead of the names of their files."""
    fields = record.model_dump()
    return fields | {name: data_uri(folder / fields[name]) for name in PICTURE_FIELDS if fields.get(name)}


def _plot(path: Path) -> str | None:
    """A plot, if the run has it: those of an earlier version have fewer."""
    return data_uri(path) if path.is_file() else None
