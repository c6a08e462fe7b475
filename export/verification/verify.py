"""The release gate: does the exported file compute what the model computes, on the path that ships?

Both sides start from an image file's bytes. PyTorch's is `serve.preprocess` and the checkpoint's network in evaluation mode;
the other is `serve.preprocess` and ONNX Runtime with the session settings of `serve.runtime.session`, at batch 1, an odd batch
and the largest. The images are the user's held-out ones and the stress images. The file must also state this run as its
origin.

A file that fails raises. Nothing that was not verified can be published, because publishing reads this step's result.

Shapes: N images, H x W the model's input, K classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from edgeline.export import file_names
from edgeline.export.graph.contract import check_graph
from edgeline.export.graph.to_onnx import CalibratedModel, metadata_of
from edgeline.export.parity.compare import compare, raise_problems
from edgeline.export.parity.layerwise import IMAGES, PLOT, find_divergence, plot_divergence
from edgeline.export.tolerances import FLOAT32, PRECISIONS
from edgeline.export.variant_registry import REFERENCE
from edgeline.export.variants_report import VariantsReport
from edgeline.export.verification.context import Findings, VerificationContext
from edgeline.export.verification.explanations import compare_maps
from edgeline.export.verification.findings import find_in_verification
from edgeline.export.verification.report import Accuracy, ImageCounts, ReferenceThresholds, VerificationReport
from edgeline.export.verification.variants import Result, describe_reference, verify_variants
from edgeline.pipeline.config import PipelineConfig, VerifyConfig
from edgeline.pipeline.data.samples import Sample, read_prepared
from edgeline.pipeline.data.stress_images import FINGERPRINT_NAME, check_preprocessing, stress_images
from edgeline.pipeline.evaluation.metrics import wilson_interval
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.runs.atomic_files import digest_of
from edgeline.pipeline.runs.content_cache import FEATURES, ContentCache
from edgeline.pipeline.runs.findings import write_findings
from edgeline.pipeline.runs.receipts import result_digest
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import VerificationError
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options

PACKAGES = (*DEVICE, "torch", "timm", "onnx")


def build_verification(run: Run, folder: Path) -> None:
    """Verify a run's exported file against its checkpoint, into the step's folder.

    `verification.json` is written whether it passes or not; a failure keeps the folder under its `.partial` name.

    Raises:
        VerificationError: the file does not compute what the model computes; the message names the worst images.
    """
    (folder / file_names.VERIFICATION).unlink(missing_ok=True)  # of an earlier try
    context = context_of(run)
    report = verify(context, run.step("variants"))
    problems = list(report.problems)
    if run.config.export.require_variants:
        problems += [f"{variant.name}: {problem}" for variant in report.variants for problem in variant.problems]
    inputs = {name: result_digest(run.step(name)) for name in file_names.VERIFIED}
    report = report.model_copy(update={"problems": tuple(problems), "passed": not problems, "inputs": inputs})
    report.write(folder / file_names.VERIFICATION)
    write_findings(folder, find_in_verification(report))
    if report.divergence is not None:
        plot_divergence(report.divergence, folder / PLOT)
    raise_problems(report.problems, report.comparisons)


def context_of(run: Run) -> VerificationContext:
    """What the verification of a run compares.

    Raises:
        VerificationError: the labels of the run's steps differ.
    """
    network, checkpoint = load_checkpoint(run.step("train"))
    evaluation = read_evaluation(run.step("evaluate"))
    prepared = read_prepared(run.step("prepare"))
    _check_labels({"data": prepared.labels, "checkpoint": checkpoint.labels, "evaluation": tuple(evaluation.labels)})
    temperature = evaluation.calibration.temperature
    return VerificationContext(
        deployed=CalibratedModel(network, temperature),
        model=(run.step("export") / file_names.MODEL).read_bytes(),
        spec=checkpoint.preprocess,
        samples=choose_samples([*prepared.of("test"), *prepared.of("val")], run.config.verify.images),
        config=gate_config(run.config),
        preprocessing_fingerprint=run.step("train") / FINGERPRINT_NAME,
        opset=run.config.export.opset,
        metadata=metadata_of(run, checkpoint, temperature),
        explain=run.config.export.explain,
        environments=run.config.environments,
        features=ContentCache(run.config.cache / FEATURES) if checkpoint.has_frozen_backbone else None,
    )


def gate_config(config: PipelineConfig) -> VerifyConfig:
    """The settings of the gate: int8 may lose the smaller of `export.max_drop` and `verify.int8.max_drop` on test images."""
    int8 = config.verify.int8
    smaller = int8.model_copy(update={"max_drop": min(int8.max_drop, config.export.max_drop)})
    return config.verify.model_copy(update={"int8": smaller})


def choose_samples(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Choose samples, test before validation, in an order that depends on their content only."""
    chosen = sorted(samples, key=lambda s: (s.split != "test", digest_of([s.sha256])))
    return chosen[:limit]


def verify(context: VerificationContext, variants: Path | None = None) -> VerificationReport:
    """Compare an ONNX file, and its variants, with a PyTorch network from image bytes to probabilities.

    Args:
        context: the file, the network, the images and the thresholds.
        variants: the folder that `export.variants.build_variants` wrote; if not given, no variants are verified.

    Returns:
        The report; `passed` is whether the file is within all thresholds, and each of `variants` has its own.

    Raises:
        ExportError: the file breaks the graph contract, so it is not run at all.
        VerificationError: preprocessing differs from training's.
    """
    problems: list[str] = []
    figures: dict[str, object] = {}
    check_graph(context.model, context.spec, classes=context.classes, opset=context.opset)
    for check in CHECKS:
        findings = check(context)
        problems += findings.problems
        figures |= findings.figures
    made = VariantsReport() if variants is None else VariantsReport.read(variants / file_names.VARIANTS)
    results: list[Result] = []
    if problems:
        images_NHW3 = np.stack(context.pixels[:IMAGES])
        divergence = find_divergence(context.deployed, context.model, context.spec, images_NHW3, quantized=False)
        problems += divergence.problems
        figures["divergence"] = divergence
    else:
        figures["reference"] = describe_reference(context)
        results = [] if variants is None else verify_variants(made.variants, variants, context)
    options = {"batches": list(context.by_batch), "torch_build": torch.__version__, **runtime_options()}
    fields = {
        "model_sha256": hashlib.sha256(context.model).hexdigest(),
        "passed": not problems,
        "problems": problems,
        "thresholds": ReferenceThresholds(max_difference=context.config.max_difference, margin=context.config.margin),
        "images": ImageCounts(held_out=len(context.samples), stress_images=len(stress_images())),
        "variants": results,
        "int8": made.int8,
        "measured_on": provenance("edgeline verify RUN", options, packages=PACKAGES),
    }
    return VerificationReport.model_validate(fields | figures)


def check_fingerprint(context: VerificationContext) -> Findings:
    """Preprocessing that gives the pixels of training time."""
    if context.preprocessing_fingerprint is None:
        return Findings()
    drift = check_preprocessing(context.preprocessing_fingerprint, context.spec)
    return Findings(figures={"pixel_drift_since_training": drift})


def check_outputs(context: VerificationContext) -> Findings:
    """Outputs equal to PyTorch's, at every batch size."""
    comparisons = [
        compare(context.names, context.expected, outputs, context.config, batch=batch)
        for batch, outputs in context.by_batch.items()
    ]
    figures = {
        "comparisons": comparisons,
        "max_difference": max(c.max_difference for c in comparisons),
        "max_logit_difference": max(c.max_logit_difference for c in comparisons),
        "top1_agreement": min(c.top1_agreement for c in comparisons),
    }
    return Findings([f"batch {c.batch}: {problem}" for c in comparisons for problem in c.problems], figures)


def check_activation_maps(context: VerificationContext) -> Findings:
    """Class activation maps and embeddings equal to PyTorch's, if the run has them."""
    if context.expected_maps is None:
        return Findings()
    figures, problems = compare_maps(
        context.session,
        context.expected_maps,
        min_sqnr_db=FLOAT32.min_sqnr_db,
        max_sum_error=PRECISIONS[REFERENCE.precision].max_map_error,
        max_difference=context.config.max_difference,
    )
    return Findings(problems, {"explanation": figures})


def check_metadata(context: VerificationContext) -> Findings:
    """The origin that the file states."""
    found = {entry.key: entry.value for entry in onnx.load_model_from_string(context.model).metadata_props}
    return Findings(context.metadata_mismatches(found, "export it again"))


def measure_accuracy(context: VerificationContext) -> Findings:
    """Accuracy of the file on the test images. Never a problem of the file."""
    if not context.labeled:
        return Findings(figures={"test_accuracy": None})
    predicted_N = context.outputs.probabilities_NK.argmax(1)
    correct, total = sum(int(predicted_N[i] == target) for i, target in context.labeled), len(context.labeled)
    low, high = wilson_interval(correct, total)
    accuracy = Accuracy(value=correct / total, low=low, high=high, correct=correct, total=total)
    return Findings(figures={"test_accuracy": accuracy})


CHECKS: tuple[Callable[[VerificationContext], Findings], ...] = (
    check_fingerprint,
    check_outputs,
    check_activation_maps,
    check_metadata,
    measure_accuracy,
)
"""Checks of the float32 file, in order. The graph contract comes before them: a file that breaks it is not run."""


def _check_labels(labels: dict[str, tuple[str, ...]]) -> None:
    if len(set(labels.values())) > 1:
        listed = "; ".join(f"{source}: {', '.join(names)}" for source, names in labels.items())
        raise VerificationError(f"the labels differ between the run's steps ({listed}); run the pipeline again")
