"""The gate: does the exported file give what the model gives, on the path that ships?

Both sides start from an image file's bytes. PyTorch's is `serve.preprocess` and the checkpoint's network in evaluation
mode; the other is `serve.preprocess` and ONNX Runtime with the session settings of `serve.runtime.session`, at batch 1, an odd
batch and the largest. The images are the user's held-out ones and a hard set; `export.parity.compare` judges. What the file
says of its origin must be so, too. What fails raises; nothing that was not verified can be published, because publishing asks
for this step's result.

Shapes: N images, H x W the model's input, K classes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeline.export import file_names
from edgeline.export.converters.environments import FOLDER
from edgeline.export.graph.contract import check_graph
from edgeline.export.graph.to_onnx import CalibratedModel, metadata_of
from edgeline.export.parity.compare import Outputs, compare, in_batches, raise_problems, run_session
from edgeline.export.parity.layerwise import IMAGES, PLOT, find_divergence
from edgeline.export.verification.explanations import Evidence, expect_evidence, judge_evidence
from edgeline.export.verification.variants import FLOAT32, Measure, describe_reference, verify_variants
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.samples import ADMITTED, Sample, map_ahead, read_image, read_prepared
from edgeline.pipeline.data.stress_images import FINGERPRINT_NAME, check_preprocessing, stress_images
from edgeline.pipeline.evaluation.metrics import wilson_interval
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.atomic_files import digest_of, write_json
from edgeline.pipeline.runs.receipts import result_digest
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options
from edgeline.serve.runtime.session import create_session

PACKAGES = (*DEVICE, "torch", "timm", "onnx")


def build_verification(run: Run, folder: Path) -> None:
    """Verify a run's exported file against its checkpoint, into the step's folder.

    `verification.json` is written whether it passes or not; a failure keeps the folder under its `.partial` name.

    Raises:
        VerificationError: the file does not give what the model gives; the message names the worst images.
    """
    (folder / file_names.VERIFICATION).unlink(missing_ok=True)  # of an earlier try
    network, checkpoint = load_checkpoint(run.step("train"))
    evaluation = read_evaluation(run.step("evaluate"))
    onnx_path = run.step("export") / file_names.MODEL
    prepared = read_prepared(run.step("prepare"))
    _check_labels({"data": prepared.labels, "checkpoint": checkpoint.labels, "evaluation": tuple(evaluation.labels)})
    temperature = evaluation.calibration.temperature
    samples = choose_samples([*prepared.of("test"), *prepared.of("val")], run.config.verify.images)
    report = verify(
        CalibratedModel(network, temperature),
        onnx_path.read_bytes(),
        checkpoint.preprocess,
        samples,
        run.config.verify,
        preprocessing_fingerprint=run.step("train") / FINGERPRINT_NAME,
        opset=run.config.export.opset,
        metadata=metadata_of(run, checkpoint, temperature),
        explain=run.config.export.explain,
        variants=run.step("variants"),
        environments=run.config.environments,
        plot=folder / PLOT,
    )
    if run.config.export.require_variants:
        report["problems"] += [f"{v['name']}: {problem}" for v in report["variants"] for problem in v["problems"]]
        report["passed"] = not report["problems"]
    report["inputs"] = {name: result_digest(run.step(name)) for name in file_names.VERIFIED}
    write_json(folder / file_names.VERIFICATION, report)
    raise_problems(report)


def choose_samples(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Take at most that many samples, test before validation, in an order that only their content decides."""
    chosen = sorted(samples, key=lambda s: (s.split != "test", digest_of([s.sha256])))
    return chosen[:most]


def verify(
    deployed: CalibratedModel,
    model: bytes,
    spec: PreprocessSpec,
    samples: Sequence[Sample],
    config: VerifyConfig,
    *,
    preprocessing_fingerprint: Path | None = None,
    opset: int | None = None,
    metadata: dict[str, str] | None = None,
    explain: bool = False,
    variants: Path | None = None,
    environments: Path = FOLDER,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Compare an ONNX file, and its variants, with a PyTorch network from image bytes to probabilities.

    Args:
        deployed: the network with its temperature; evaluation mode is set here.
        model: the ONNX file's bytes.
        spec: the preprocessing of both.
        samples: held-out images.
        config: the thresholds.
        preprocessing_fingerprint: the hard set's pixels at training time; checked where given.
        opset: the operator set that the file may use at most; any where not given.
        metadata: what the file must say of its origin; checked where given.
        explain: whether it must give evidence and embedding, and PyTorch's.
        variants: the folder of `export.variants.build_variants`; none are judged where not given.
        environments: where the runtimes that stay apart are installed.
        plot: where to draw how the error grows along the network, should the file fail.

    Returns:
        The report that becomes `verification.json`; `passed` says whether the file held all thresholds, and each of `variants`
        says so for itself.

    Raises:
        ExportError: the file breaks the graph contract, so it is not run at all.
        VerificationError: preprocessing is not what it was at training.
    """
    classes = deployed.network.classifier.out_features
    graph = check_graph(model, spec, classes=classes, opset=opset)
    pixel_drift = check_preprocessing(preprocessing_fingerprint, spec) if preprocessing_fingerprint is not None else None
    names = [*(f"hard:{name}" for name in stress_images()), *(sample.name for sample in samples)]
    expected, pixels = run_pytorch(deployed, spec, samples)
    session = create_session(model)
    comparisons = []
    for batch in (1, config.odd_batch, config.max_batch):
        observed = run_session(session, pixels, batch)
        comparisons.append(compare(names, expected, observed, config, batch=batch))
    problems = [f"batch {c.batch}: {problem}" for c in comparisons for problem in c.problems]
    evidence, explanation = None, None
    if explain:
        evidence, explanation, unlike = _judge_evidence(deployed, session, pixels, config)
        problems += unlike
    problems += _strangers({entry.key: entry.value for entry in graph.metadata_props}, metadata or {})
    divergence = None
    if problems:
        place, divergence = find_divergence(deployed, model, spec, np.stack(pixels[:IMAGES]), plot, quantized=False)
        problems += [place] if place else []
    # The samples follow the hard set; only they have labels.
    own_NK = observed.probabilities_NK[len(stress_images()) :]
    tested = [(sample, row_K) for sample, row_K in zip(samples, own_NK, strict=True) if sample.split == "test"]
    correct = sum(int(row_K.argmax()) == sample.index for sample, row_K in tested)
    made = {} if variants is None else json.loads((variants / file_names.VARIANTS).read_text(encoding="utf-8"))
    labeled = [(len(stress_images()) + position, s.index) for position, s in enumerate(samples) if s.split == "test"]
    reference, judged = None, []
    if not problems:
        held_against = Measure(
            reference=model,
            deployed=deployed,
            spec=spec,
            pixels=pixels,
            expected=expected,
            evidence=evidence,
            tested=labeled,
            scene=stress_images()["scene"],
            metadata=metadata or {},
            config=config,
            opset=opset,
            environments=environments,
        )
        reference = describe_reference(observed, held_against)
        if variants is not None:
            judged = verify_variants(made["variants"], variants, held_against)
    options = {"batches": [c.batch for c in comparisons], "torch_build": torch.__version__, **runtime_options()}
    return {
        "schema": "edgeline.verification/1",
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "passed": not problems,
        "problems": problems,
        "thresholds": {"max_difference": config.max_difference, "margin": config.margin, "top1_agreement_over_margin": 1.0},
        "images": {"held_out": len(samples), "stress_images": len(stress_images())},
        "test_accuracy": None if not tested else _accuracy(correct, len(tested)),
        "max_difference": max(c.max_difference for c in comparisons),
        "max_logit_difference": max(c.max_logit_difference for c in comparisons),
        "top1_agreement": min(c.top1_agreement for c in comparisons),
        "pixel_drift_since_training": pixel_drift,
        "comparisons": [asdict(c) for c in comparisons],
        "divergence": divergence,
        "explanation": explanation,
        "reference": reference,
        "variants": judged,
        "int8": made.get("int8"),
        "measured_on": provenance("edgeline verify RUN", options, packages=PACKAGES),
    }


def run_pytorch(deployed: CalibratedModel, spec: PreprocessSpec, samples: Sequence[Sample]) -> tuple[Outputs, list[np.ndarray]]:
    """Preprocess the hard set and the samples, and run PyTorch on them.

    Returns:
        What it gives, and each image's pixels, uint8 (H, W, 3).
    """
    deployed.eval()
    readers: list[Callable[[], bytes]] = [lambda data=data: data for data in stress_images().values()]  # type: ignore[misc]
    readers += [lambda sample=sample: read_image(sample) for sample in samples]  # type: ignore[misc]
    pixels = list(map_ahead(lambda read: preprocess(read(), spec, ADMITTED), readers, ahead=64))
    rows = []
    batches = track(in_batches(pixels, CPU_BATCH), "verifying: PyTorch", len(pixels), step=CPU_BATCH)
    with torch.inference_mode():
        for batch_NHW3 in batches:
            rows.append([output.numpy() for output in deployed(torch.from_numpy(batch_NHW3))])
    return Outputs.join(rows), pixels


def _judge_evidence(
    deployed: CalibratedModel, session: Any, pixels: Sequence[np.ndarray], config: VerifyConfig
) -> tuple[Evidence, dict[str, Any], list[str]]:
    expected = expect_evidence(deployed.network, deployed.temperature, pixels)
    bar, most = FLOAT32.min_sqnr_db, config.max_difference
    return expected, *judge_evidence(session, expected, "float32", min_sqnr_db=bar, max_difference=most)


def _check_labels(labels: dict[str, tuple[str, ...]]) -> None:
    if len(set(labels.values())) > 1:
        said = "; ".join(f"{who}: {', '.join(names)}" for who, names in labels.items())
        raise VerificationError(f"the labels are not the same everywhere ({said}); run the line again")


def _strangers(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What a file says of itself that is not so of this run: it is another run's."""
    return [
        f"the file says {key} = {found.get(key)!r}, this run has {value!r}; export it again"
        for key, value in expected.items()
        if found.get(key) != value
    ]


def _accuracy(correct: int, total: int) -> dict[str, float]:
    low, high = wilson_interval(correct, total)
    return {"value": correct / total, "low": low, "high": high, "correct": correct, "total": total}
