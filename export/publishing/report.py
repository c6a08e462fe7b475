"""The pages that people read: `report.html`, one file that needs no network, `card.md` and `golden/README.md`."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgeline.export.publishing import variant_table
from edgeline.pipeline.evaluation.evaluate import Evaluation
from edgeline.pipeline.runs.run import Run
from edgeline.serve.runtime.provenance import machine_line

ENVIRONMENT = Environment(
    loader=PackageLoader("edgeline.export.publishing"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_report(
    path: Path, run: Run, evaluation: Evaluation, verification: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Write the report: figures, plots, the gate's findings, provenance. All text from the data is escaped."""
    page = ENVIRONMENT.get_template("report.html").render(
        name=run.config.artifact_name,
        evaluation=evaluation,
        verification=verification,
        provenance=provenance,
        caption=variant_table.CAPTION,
        forms=variant_table.rows(verification),
        remarks=variant_table.remarks(verification),
        int8=variant_table.int8_line(verification),
        origins=variant_table.origins(verification, provenance),
        confusion=_data_uri(run.step("evaluate") / "confusion.png"),
        reliability=_data_uri(run.step("evaluate") / "reliability.png"),
    )
    path.write_text(page, encoding="utf-8")


def write_card(path: Path, name: str, evaluation: Evaluation, verification: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write the model card: what it is for, how good it is, what it was proven on, and its limits."""
    top1, images, calibration = evaluation.top1, provenance["images"], evaluation.calibration
    held_out, int8 = verification["images"]["held_out"], variant_table.int8_line(verification)
    more = "".join(f"\n{line}.\n" for line in (*variant_table.remarks(verification), *([f"int8: {int8}"] if int8 else [])))
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

{_markdown(variant_table.rows(verification))}

{variant_table.CAPTION} Taken on {machine_line(verification["reference"]["measured_on"]["machine"])}.
{more}
## Intended use

Photos like those it was trained on. It knows its {len(evaluation.labels)} classes and nothing else: it has no answer for
"none of them".

## Limits

The figures hold for pictures drawn like the held-out ones. `report.html` has them class by class, with the most confident
mistakes.

## How the figures were taken

{_markdown(variant_table.origins(verification, provenance))}

ARTIFACT is this folder. RUN is the folder that `edgeline prepare` prints for the same data and settings (`provenance` in
`manifest.json`); a finished step is reused, so remove its folder there to take its figures again.
"""
    path.write_text(text, encoding="utf-8")


def write_golden_page(path: Path, golden: dict[str, Any]) -> None:
    """Write what golden samples are, how to run them, how to read them, and what to do when one fails.

    Args:
        path: of the page, beside `golden.json`.
        golden: what `golden.json` says; see `serve.artifact.golden`.
    """
    pixels, own = golden["pixel_tolerance"], golden.get("variants", {})
    lines = [_tolerance_line("every other variant" if own else "every variant", golden)]
    lines += [_tolerance_line(name, tolerances) for name, tolerances in own.items()]
    turned = golden["samples"][0]["file"].removeprefix("golden/")
    text = f"""# Golden samples

{len(golden["samples"])} held-out photos, the pixels they become, and what the model answered for them where it was proven. A
machine that gives the same answers decodes, turns, crops, resizes and computes as that one did. They prove a machine; they
do not say how good the model is. Run them on every new device, and again when its runtime, decoder or system changed.

| file | what |
|---|---|
| `golden.json` | the tolerances, and of each sample its files, `label`, `probabilities` and `logits` |
| `0.*`, `1.*`, ... | the photos, at most 1,024 pixels wide or high (one may have 2,048), with no metadata but an orientation |
| `{turned}` | lies on its side, with an EXIF tag that says so: who ignores the tag fails here |
| `*.pixels.png` | the very bytes that the model must be fed for the photo |

A variant that rounds more than the reference has answers of its own, under its name in each sample's `variants`.

## To run them

With edgeline, `edgeline check FOLDER`, the folder being the one that holds `manifest.json`; it needs no training libraries.
On a device without Python, for each sample:

1. preprocess the photo as the manifest's `preprocess` says; the mean absolute difference to `*.pixels.png` must be at most
   {pixels:g} of 255;
2. run the model on your pixels: no probability may differ from the sample's by more than the first tolerance below;
3. run it on `*.pixels.png`: no logit may differ by more than the second, times the largest absolute logit of the sample (or
   times 1 where that is smaller).

| variant | probability | logit |
|---|---|---|
{"".join(lines)}
The tolerances leave room for another processor's rounding and, for pixels, another JPEG decoder. The photos were chosen so
that another filter, crop, order of channels or model shows. Do not widen a tolerance to pass: find out what differs.

## When one fails

| what differs | look at |
|---|---|
| pixels of `{turned}` only | the EXIF orientation is ignored, or applied twice |
| pixels of the JPEGs only | the decoder: color management, or a decoder that scales while it decodes |
| pixels of all, edges shimmer | resizing without antialiasing; a graphics library's scaler does that |
| pixels of all, shifted | the crop: whole pixels, halves rounded to even, left and top rounded down |
| probabilities, though the pixels agree | the order of channels or axes, a second normalization, another model file |
| logits only | the same, hidden by a model that is sure; or lower precision: a delegate, an accelerator, half floats |
| int8 only, on x86 | a processor without VNNI, whose products saturate: `session.x64quantprecision` = 1 |
"""
    path.write_text(text, encoding="utf-8")


def _tolerance_line(name: str, golden: dict[str, Any]) -> str:
    return f"| {name} | {golden['tolerance']:g} | {golden.get('logit_tolerance', golden['tolerance']):g} |\n"


def _markdown(lines: list[dict[str, str]]) -> str:
    """Rows by the headings of their columns as a table."""
    table = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
