"""Measure a checkpoint on the test split, and calibrate its confidence on the validation split.

Shapes: N test images, M validation images, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Sample, read_attributes, read_prepared, stream_pixels
from edgeline.pipeline.evaluation.findings import HeldOut, find_in_evaluation, find_in_insight
from edgeline.pipeline.evaluation.insight import (
    PICTURES,
    Evaluated,
    Insight,
    check_labels,
    measure_curve,
    picture_mistakes,
    write_insight,
)
from edgeline.pipeline.evaluation.metrics import best_temperature, calibration_error, nll, softmax, wilson_interval
from edgeline.pipeline.evaluation.plots import (
    write_confusion_png,
    write_history_png,
    write_learning_curve_png,
    write_reliability_png,
)
from edgeline.pipeline.evaluation.report import Average, Calibration, ClassReport, Evaluation, Mistake, Share, write_evaluation
from edgeline.pipeline.evaluation.slices import slice_by
from edgeline.pipeline.explanation.embedding_map import place, write_embedding_png
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import CALIBRATION, load_checkpoint
from edgeline.pipeline.models.devices import CPU_BATCH, TRACING, choose_device, memory_errors, to_device
from edgeline.pipeline.models.frozen_features import FrozenBackbone
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.content_cache import FEATURES, ContentCache
from edgeline.pipeline.runs.findings import write_findings
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

Model = Network | FrozenBackbone

MAX_MISTAKES = 50
"""The most confident mistakes are listed, up to this number."""


def build_evaluation(run: Run, folder: Path) -> None:
    """Evaluate a run's checkpoint: write report, plots, pictures and the test split's probabilities into the step's folder."""
    with TRACING:
        _build_evaluation(run, folder)


def _build_evaluation(run: Run, folder: Path) -> None:
    network, checkpoint = load_checkpoint(run.step("train"))
    prepared = read_prepared(run.step("prepare"))
    device = choose_device(run.config.train.device)
    network.to(device)
    test = prepared.of("test")
    features = ContentCache(run.config.cache / FEATURES)
    model = FrozenBackbone(network, device, features) if checkpoint.has_frozen_backbone else network
    test_logits_NK, features_ND = compute_outputs(model, test, checkpoint.preprocess, device)
    with np.load(run.step("train") / CALIBRATION, allow_pickle=False) as calibration:
        logits_MK, targets_M = calibration["logits"], calibration["targets"]
    temperature = best_temperature(logits_MK, targets_M)
    evaluation = evaluate(test_logits_NK, test, checkpoint.labels, temperature=temperature, bins=run.config.evaluate.bins)
    evaluation = evaluation.model_copy(update={"device": device.type})
    write_evaluation(folder, evaluation)
    probabilities_NK = softmax(test_logits_NK / temperature)
    correct = int((logits_MK.argmax(1) == targets_M).sum())
    np.savez_compressed(folder / "test.npz", probabilities=probabilities_NK, targets=_targets(test))
    write_confusion_png(folder / "confusion.png", np.asarray(evaluation.confusion), checkpoint.labels)
    write_reliability_png(folder / "reliability.png", probabilities_NK, _targets(test), run.config.evaluate.bins)
    if len(checkpoint.history) > 1:
        write_history_png(folder / "history.png", checkpoint.history, checkpoint.best_epoch)
    evaluated = Evaluated(
        run=run,
        prepared=prepared,
        network=network.to("cpu"),
        spec=checkpoint.preprocess,
        features_ND=features_ND,
        probabilities_NK=probabilities_NK,
    )
    insight = build_insight(evaluated, folder, device)
    held_out = HeldOut(correct, len(targets_M), "out of fold" if len(targets_M) > len(prepared.of("val")) else "on validation")
    write_findings(folder, [*find_in_evaluation(evaluation, probabilities_NK, held_out), *find_in_insight(insight)])


def compute_logits(
    network: Model, samples: Sequence[Sample], spec: PreprocessSpec, device: torch.device, batch_size: int = CPU_BATCH
) -> np.ndarray:
    """Compute the logits of samples, as `compute_outputs` does: float32, shape (N, K)."""
    return compute_outputs(network, samples, spec, device, batch_size)[0]


def compute_outputs(
    network: Model, samples: Sequence[Sample], spec: PreprocessSpec, device: torch.device, batch_size: int = CPU_BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the logits and features of samples from their files, in evaluation mode and float32.

    Args:
        network: from uint8 pixels (N, H, W, 3) to logits: a `Network`, or a `FrozenBackbone`.
        samples: in the order of the rows.
        spec: the network's preprocessing.
        device: of the network.
        batch_size: images a batch.

    Returns:
        Logits (N, K) and features (N, D), float32, on the CPU.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: a logit is not finite, or a batch does not fit into memory.
    """
    network.eval()
    batches = track(stream_pixels(samples, spec, batch_size), "evaluating images", len(samples), step=batch_size)
    torch.backends.cudnn.allow_tf32 = False  # otherwise a GPU's convolutions round to 10 bits
    logits: list[Tensor] = []
    features: list[Tensor] = []
    hook = network.head.register_forward_pre_hook(lambda _head, inputs: features.append(inputs[0].float().cpu()))
    try:
        with torch.inference_mode(), memory_errors(batch_size):
            for batch_NHW3 in batches:
                logits.append(network(to_device(torch.from_numpy(batch_NHW3), device)).float().cpu())
    finally:
        hook.remove()
    logits_NK = torch.cat(logits).numpy()
    finite_N = np.isfinite(logits_NK).all(1)
    if not finite_N.all():
        raise TrainingError(
            f"the network's output is not finite for {len(finite_N) - finite_N.sum()} of {len(finite_N)} images, the first is "
            f"{samples[int(finite_N.argmin())].name}; check that image, or train again with a lower train.learning_rate",
            code="logits_not_finite",
        )
    return logits_NK, torch.cat(features).numpy()


def build_insight(evaluated: Evaluated, folder: Path, device: torch.device) -> Insight:
    """Look into the data and the mistakes, and write what is found, with pictures, into the step's folder."""
    (folder / PICTURES).mkdir(exist_ok=True)
    test, predicted_N = evaluated.prepared.of("test"), evaluated.probabilities_NK.argmax(1)
    correct_N = predicted_N == _targets(test)
    columns = read_attributes(evaluated.run.step("prepare"))
    checked, label_errors = check_labels(evaluated, folder)
    insight = Insight(
        labels_checked=checked,
        label_errors=label_errors,
        learning_curve=measure_curve(evaluated, folder, device),
        slices=slice_by({name: [by[sample.pixels] for sample in test] for name, by in columns.items()}, correct_N),
        mistakes=picture_mistakes(evaluated, folder),
    )
    write_insight(folder, insight)
    if insight.learning_curve is not None:
        write_learning_curve_png(folder / "learning_curve.png", insight.learning_curve)
    places_N2 = place(evaluated.features_ND)
    write_embedding_png(folder / "embedding.png", places_N2, _targets(test), ~correct_N, list(evaluated.prepared.labels))
    return insight


def evaluate(
    logits_NK: np.ndarray, samples: Sequence[Sample], labels: Sequence[str], *, temperature: float, bins: int
) -> Evaluation:
    """Compute the evaluation of a test split from its logits.

    Args:
        logits_NK: float32, before temperature scaling.
        samples: the images of the logits, in the same order.
        labels: class names in index order.
        temperature: fitted on validation.
        bins: of the calibration error.
    """
    targets_N = _targets(samples)
    plain_NK, scaled_NK = softmax(logits_NK), softmax(logits_NK / temperature)
    predicted_N = scaled_NK.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (targets_N, predicted_N), 1)
    classes = _class_reports(confusion, labels)
    measured = [entry for entry in classes if entry.support]
    rank_N = (logits_NK > logits_NK[np.arange(len(logits_NK)), targets_N, None]).sum(1)
    return Evaluation(
        labels=list(labels),
        images=len(samples),
        top1=_share(int((predicted_N == targets_N).sum()), len(samples)),
        top5=_share(int((rank_N < 5).sum()), len(samples)) if len(labels) > 5 else None,
        classes=classes,
        macro=Average(**{name: float(np.mean([getattr(c, name) for c in measured])) for name in ("precision", "recall", "f1")}),
        confusion=confusion.tolist(),
        calibration=Calibration(
            temperature=temperature,
            bins=bins,
            ece_before=calibration_error(plain_NK, targets_N, bins),
            ece_after=calibration_error(scaled_NK, targets_N, bins),
            nll_before=nll(logits_NK, targets_N),
            nll_after=nll(logits_NK / temperature, targets_N),
        ),
        mistakes=_mistakes(scaled_NK, predicted_N, samples, labels),
    )


def _targets(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.index for sample in samples])


def _share(correct: int, total: int) -> Share:
    low, high = wilson_interval(correct, total)
    return Share(value=correct / total, low=low, high=high, correct=correct, total=total)


def _class_reports(confusion: np.ndarray, labels: Sequence[str]) -> list[ClassReport]:
    correct, predicted, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    reports = []
    for index, label in enumerate(labels):
        precision = float(correct[index] / predicted[index]) if predicted[index] else 0.0
        recall = float(correct[index] / support[index]) if support[index] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        reports.append(ClassReport(label=label, precision=precision, recall=recall, f1=f1, support=int(support[index])))
    return reports


def _mistakes(
    probabilities_NK: np.ndarray, predicted_N: np.ndarray, samples: Sequence[Sample], labels: Sequence[str]
) -> list[Mistake]:
    wrong = [
        Mistake(
            image=sample.name,
            label=sample.label,
            predicted=labels[predicted],
            probability=float(probabilities_K[predicted]),
        )
        for sample, predicted, probabilities_K in zip(samples, predicted_N, probabilities_NK, strict=True)
        if predicted != sample.index
    ]
    return sorted(wrong, key=lambda mistake: -mistake.probability)[:MAX_MISTAKES]
