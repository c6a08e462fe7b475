"""The step after the export: make the further variants that a run asks for, each from the reference file.

`variants.json` says of each what was made, or why not. Whether one holds is the gate's to say (`export.verify`).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from export import files
from export.autopilot import Choice, Tuned, choose_int8
from export.formats import halve, to_ort
from export.int8 import Quantisable
from pipeline.checkpoint import read_settings
from pipeline.progress import waiting
from pipeline.run import Run
from pipeline.samples import read_prepared
from pipeline.steps import write_json
from serve.errors import DataError, ExportError


@dataclass(frozen=True, slots=True)
class Kind:
    """What a variant is, whatever the model."""

    file: str
    format: str
    precision: str


KINDS = {
    "onnx-int8": Kind("model.int8.onnx", "onnx", "int8"),
    "onnx-fp16": Kind("model.fp16.onnx", "onnx", "float16 weights"),
    "ort-fp32": Kind("model.ort", "ort", "float32"),
    "ort-int8": Kind("model.int8.ort", "ort", "int8"),
}


def build_variants(run: Run, folder: Path) -> None:
    """Make a run's variants in the step's folder.

    Raises:
        ExportError, DataError: one cannot be made, and the run requires it.
    """
    reference = (run.step("export") / files.MODEL).read_bytes()
    report: dict[str, Any] = {"schema": "edgeline.variants/1", "variants": []}
    int8: Choice | None = None
    for name in dict.fromkeys(run.config.export.variants):
        kind = KINDS[name]
        entry = {"name": name, "file": kind.file, "format": kind.format, "precision": kind.precision, "made": True}
        try:
            if kind.precision == "int8":
                int8 = int8 or _choose(run, reference)
                report["int8"] = int8.report
                if int8.model is None:
                    raise ExportError(f"{name} is not made: {int8.report['why']}", code="variant_unfit")
            _write(folder / kind.file, name, reference, int8)
        except (ExportError, DataError) as error:
            if run.config.export.require_variants:
                raise
            entry |= {"made": False, "why": str(error)}
        report["variants"].append(entry)
    write_json(folder / files.VARIANTS, report)


def _choose(run: Run, reference: bytes) -> Choice:
    prepared = read_prepared(run.step("prepare"))
    spec = read_settings(run.step("train")).preprocess
    config, bars = run.config.export, run.config.verify.int8
    return choose_int8(reference, spec, prepared.of("train"), prepared.of("val"), config, bars, partial(_tune, run, reference))


def _tune(run: Run, reference: bytes, ready: Quantisable, quantised: bytes, epochs: int) -> Tuned:
    from export.qat import tune, tuning_of  # most runs never get here

    return tune(tuning_of(run, reference), ready, quantised, epochs)


def _write(path: Path, name: str, reference: bytes, int8: Choice | None) -> None:
    if name == "onnx-fp16":
        path.write_bytes(halve(reference))
        return
    source = reference
    if int8 is not None and name.endswith("int8"):
        assert int8.model is not None
        source = int8.model
    if name == "onnx-int8":
        path.write_bytes(source)
        return
    with waiting(f"writing {path.name}"):
        data, operators = to_ort(source)
    path.write_bytes(data)
    path.with_name(f"{path.name}.operators.config").write_text(operators, encoding="utf-8")
