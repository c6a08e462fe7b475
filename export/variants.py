"""The step after the export: make the further variants that a run asks for, each from the reference file.

`variants.json` says of each what was made, or why not. Whether one holds is the gate's to say (`export.verification.verify`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeline.export import file_names
from edgeline.export.converters.convert import SOURCES, Write, convert
from edgeline.export.graph.cam_outputs import add_outputs, plain
from edgeline.export.graph.precision import halve, to_ort
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.quantization.search import TIMED_RUNS, Choice, Tuned, choose_calibration, choose_int8
from edgeline.export.quantization.static_int8 import Quantizable, saturates
from edgeline.pipeline.data.samples import read_prepared, stream_pixels
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.models.checkpoint import load_checkpoint, read_settings
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.progress import waiting
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ConfigError, DataError, ExportError
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options


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
    "openvino-fp32": Kind("model.xml", "openvino", "float32"),
    "openvino-int8": Kind("model.int8.xml", "openvino", "int8"),
    "litert-fp32": Kind("model.tflite", "litert", "float32"),
    "litert-int8": Kind("model.int8.tflite", "litert", "int8"),
    "executorch-fp32": Kind("model.pte", "executorch", "float32"),
    "executorch-int8": Kind("model.int8.pte", "executorch", "int8"),
    "coreml-fp16": Kind("model.mlpackage/Manifest.json", "coreml", "float16"),
}


def build_variants(run: Run, folder: Path) -> None:
    """Make a run's variants in the step's folder.

    Raises:
        ExportError, DataError: one cannot be made, and the run requires it.
    """
    reference = (run.step("export") / file_names.MODEL).read_bytes()
    report: dict[str, Any] = {"schema": "edgeline.variants/1", "variants": []}
    int8: Choice | None = None
    for name in dict.fromkeys(run.config.export.variants):
        kind = KINDS[name]
        entry = {"name": name, "file": kind.file, "format": kind.format, "precision": kind.precision, "made": True}
        try:
            model = reference
            if kind.precision == "int8" and "model.onnx" in SOURCES.get(kind.format, ("model.onnx",)):
                int8 = int8 or _choose(run, plain(reference))
                report["int8"] = int8.report
                if int8.model is None:
                    raise ExportError(f"{name} is not made: {int8.report['why']}", code="variant_unfit")
                model = _explaining(run, int8.model)
            if kind.format in SOURCES:
                convert(kind.format, kind.precision, _sources(run, model), folder / kind.file, run.config.environments)
            else:
                _write(folder / kind.file, name, model)
                if kind.precision == "int8":
                    entry["saturates"] = saturates(model)
        except (ExportError, DataError) as error:
            if run.config.export.require_variants:
                raise
            entry |= {"made": False, "why": str(error)}
        report["variants"].append(entry)
    if "int8" in report:
        options = {"batch": CPU_BATCH, "timed": {"batch": 1, "threads": 1, "runs": TIMED_RUNS}, **runtime_options()}
        report["int8"]["measured_on"] = provenance("edgeline variants RUN", options, packages=(*DEVICE, "onnx"))
    write_json(folder / file_names.VARIANTS, report)


def _explaining(run: Run, model: bytes) -> bytes:
    """An int8 file with the outputs that its reference has; they were taken out before it was quantized."""
    if not run.config.export.explain:
        return model
    spec = read_settings(run.step("train")).preprocess
    try:
        with_more = add_outputs(onnx.load_model_from_string(model), spec.height, spec.width)
    except ConfigError as error:
        raise ExportError(f"the int8 file cannot be given what its reference has: {error}", code="variant_unfit") from error
    return bytes(with_more.SerializeToString(deterministic=True))


def _choose(run: Run, reference: bytes) -> Choice:
    prepared = read_prepared(run.step("prepare"))
    spec = read_settings(run.step("train")).preprocess
    config, thresholds = run.config.export, run.config.verify.int8
    return choose_int8(
        reference, spec, prepared.of("train"), prepared.of("val"), config, thresholds, partial(_tune, run, reference)
    )


def _tune(run: Run, reference: bytes, ready: Quantizable, quantized: bytes, epochs: int) -> Tuned:
    from edgeline.export.quantization.qat import tune, tuning_of  # most runs never get here

    return tune(tuning_of(run, reference), ready, quantized, epochs)


def _sources(run: Run, model: bytes) -> Mapping[str, Write]:
    """What a converter may ask for, written where it looks for it."""

    def write_onnx(path: Path) -> None:
        path.write_bytes(plain(model))  # what answers of other runtimes is two arrays

    def write_program(path: Path) -> None:
        network, checkpoint = load_checkpoint(run.step("train"))
        temperature = read_evaluation(run.step("evaluate")).calibration.temperature
        deployed = CalibratedModel(network, temperature).eval().to(memory_format=torch.contiguous_format)
        image_1HW3 = torch.zeros(1, checkpoint.preprocess.height, checkpoint.preprocess.width, 3, dtype=torch.uint8)
        torch.export.save(torch.export.export(deployed, (image_1HW3,)), path)

    def write_calibration(path: Path) -> None:
        train = read_prepared(run.step("prepare")).of("train")
        spec = read_settings(run.step("train")).preprocess
        chosen = choose_calibration(train, run.config.export.calibration_images)
        np.save(path, np.concatenate(list(stream_pixels(chosen, spec, CPU_BATCH))))

    return {"model.onnx": write_onnx, "program.pt2": write_program, "calibration.npy": write_calibration}


def _write(path: Path, name: str, model: bytes) -> None:
    if name == "onnx-fp16":
        model = halve(model)
    if not name.startswith("ort"):
        path.write_bytes(model)
        return
    with waiting(f"writing {path.name}"):
        data, operators = to_ort(model)
    path.write_bytes(data)
    path.with_name(f"{path.name}.operators.config").write_text(operators, encoding="utf-8")
