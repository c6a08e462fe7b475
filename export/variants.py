"""The step after the export: make the other variants that are configured, each from the reference file.

`variants.json` lists what was made, or why not. Whether a variant passes is decided afterwards, by
`export.verification.verify`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
import torch

from edgeline.export import file_names
from edgeline.export.converters.convert import Write, convert
from edgeline.export.graph.cam_outputs import add_outputs, plain
from edgeline.export.graph.precision import halve, to_ort
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.quantization.qat import tune, tuning_of
from edgeline.export.quantization.report import Int8Report
from edgeline.export.quantization.search import TIMED_RUNS, Choice, SearchRequest, Tuned, choose_calibration, choose_int8
from edgeline.export.quantization.static_int8 import Quantizable, saturates
from edgeline.export.records import MeasuredOn
from edgeline.export.variant_registry import VARIANTS, VariantSpec
from edgeline.export.variants_report import VariantFile, VariantsReport
from edgeline.pipeline.data.samples import read_prepared, stream_pixels
from edgeline.pipeline.evaluation.metrics import temperature_of
from edgeline.pipeline.models.checkpoint import CALIBRATION, load_checkpoint, read_settings
from edgeline.pipeline.models.devices import CPU_BATCH, TRACING
from edgeline.pipeline.progress import waiting
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ConfigError, DataError, ExportError
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options

ACTIVATIONS = "activations.sqlite"
"""File in the cache folder with what int8 needs to know about the activations of backbones."""


def build_variants(run: Run, folder: Path) -> None:
    """Make a run's variants in the step's folder.

    Raises:
        ExportError, DataError: one cannot be made, and the run requires it.
    """
    models = _Models(run)
    entries = []
    for name in dict.fromkeys(run.config.export.variants):
        spec = VARIANTS[name]
        entry = VariantFile(name=name, file=spec.file, format=spec.format, precision=spec.precision)
        try:
            entry = entry.model_copy(update={"saturates": _make(spec, models, folder)})
        except (ExportError, DataError) as error:
            if run.config.export.require_variants:
                raise
            entry = entry.model_copy(update={"made": False, "why": str(error)})
        entries.append(entry)
    VariantsReport(variants=tuple(entries), int8=models.int8_report).write(folder / file_names.VARIANTS)


@dataclass
class _Models:
    """The files that variants are made from; int8 is chosen once, when the first variant needs it."""

    run: Run

    @cached_property
    def reference(self) -> bytes:
        return (self.run.step("export") / file_names.MODEL).read_bytes()

    @cached_property
    def choice(self) -> Choice:
        return choose_int8(search_request(self.run, plain(self.reference)))

    @property
    def int8_report(self) -> Int8Report | None:
        if "choice" not in vars(self):
            return None
        options = {"batch": CPU_BATCH, "timed": {"batch": 1, "threads": 1, "runs": TIMED_RUNS}, **runtime_options()}
        how = provenance("edgeline variants RUN", options, packages=(*DEVICE, "onnx"))
        return self.choice.report.model_copy(update={"measured_on": MeasuredOn.model_validate(how)})


def _make(spec: VariantSpec, models: _Models, folder: Path) -> bool | None:
    """Write one variant; returns whether its products may saturate, if that can be determined."""
    run, model = models.run, models.reference
    if spec.reads_int8_onnx:
        if models.choice.model is None:
            raise ExportError(f"{spec.name} is not made: {models.choice.report.why}", code="variant_unfit")
        model = _explaining(run, models.choice.model)
    if spec.converter is not None:
        convert(spec.format, spec.precision, _sources(run, model), folder / spec.file, run.config.environments)
        return None
    _write(folder / spec.file, spec, model)
    return saturates(model) if spec.precision == "int8" else None


def _explaining(run: Run, model: bytes) -> bytes:
    """An int8 file with the outputs that its reference has; they were removed before it was quantized."""
    if not run.config.export.explain:
        return model
    spec = read_settings(run.step("train")).preprocess
    try:
        with_more = add_outputs(onnx.load_model_from_string(model), spec.height, spec.width)
    except ConfigError as error:
        raise ExportError(f"the int8 file cannot have the reference's outputs: {error}", code="variant_unfit") from error
    return bytes(with_more.SerializeToString(deterministic=True))


def search_request(run: Run, reference: bytes) -> SearchRequest:
    """What the search for int8 reads of a run.

    Args:
        run: with a finished export.
        reference: its float32 file, without further outputs.
    """
    prepared, checkpoint = read_prepared(run.step("prepare")), read_settings(run.step("train"))
    return SearchRequest(
        reference=reference,
        spec=checkpoint.preprocess,
        train=prepared.of("train"),
        val=prepared.of("val"),
        config=run.config.export,
        thresholds=run.config.verify.int8,
        tune=partial(_tune, run, reference),
        cache=ContentCache(run.config.cache / ACTIVATIONS) if checkpoint.has_frozen_backbone else None,
    )


def _tune(run: Run, reference: bytes, ready: Quantizable, quantized: bytes, epochs: int) -> Tuned:
    return tune(tuning_of(run, reference), ready, quantized, epochs)


def _sources(run: Run, model: bytes) -> Mapping[str, Write]:
    """What a converter may read, each written by a function."""

    def write_onnx(path: Path) -> None:
        path.write_bytes(plain(model))  # other runtimes have two outputs

    def write_program(path: Path) -> None:
        network, checkpoint = load_checkpoint(run.step("train"))
        temperature = temperature_of(run.step("train") / CALIBRATION)
        deployed = CalibratedModel(network, temperature).eval().to(memory_format=torch.contiguous_format)
        image_1HW3 = torch.zeros(1, checkpoint.preprocess.height, checkpoint.preprocess.width, 3, dtype=torch.uint8)
        with TRACING:
            program = torch.export.export(deployed, (image_1HW3,))
        torch.export.save(program, path)

    def write_calibration(path: Path) -> None:
        train = read_prepared(run.step("prepare")).of("train")
        spec = read_settings(run.step("train")).preprocess
        chosen = choose_calibration(train, run.config.export.calibration_images)
        np.save(path, np.concatenate(list(stream_pixels(chosen, spec, CPU_BATCH))))

    return {"model.onnx": write_onnx, "program.pt2": write_program, "calibration.npy": write_calibration}


def _write(path: Path, spec: VariantSpec, model: bytes) -> None:
    if spec.precision == "float16 weights":
        model = halve(model)
    if spec.format != "ort":
        path.write_bytes(model)
        return
    with waiting(f"writing {path.name}"):
        data, operators = to_ort(model)
    path.write_bytes(data)
    path.with_name(f"{path.name}.operators.config").write_text(operators, encoding="utf-8")
