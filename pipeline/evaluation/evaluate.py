"""Measure a checkpoint on the test split, and calibrate its confidence on the validation split.

Shapes: N test images, M validation images, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgeline.pipeline.data.samples import Sample, read_prepared, stream_pixels
from edgeline.pipeline.evaluation.findings import find_in_evaluation
from edgeline.pipeline.evaluation.metrics import best_temperature, calibration_error, nll, softmax, wilson_interval
from edgeline.pipeline.evaluation.plots import write_confusion_png, write_reliability_png
from edgeline.pipeline.evaluation.report import Average, Calibration, ClassReport, Evaluation, Mistake, Share, write_evaluation
from edgeline.pipeline.models.checkpoint import CALIBRATION, load_checkpoint
from edgeline.pipeline.models.devices import CPU_BATCH, choose_device, memory_errors, to_device
from edgeline.pipeline.models.frozen_features import FrozenBackbone
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.content_cache import FEATURES, ContentCache
from edgeline.pipeline.runs.findings import write_findings
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

MAX_MISTAKES = 50
"""The most confident mistakes are listed, up to this number."""


def build_evaluation(run: Run, folder: Path) -> None:
    """Evaluate a run's checkpoint: write the report, two plots and the test split's probabilities into the step's folder."""
    network, checkpoint = load_checkpoint(run.step("train"))
    prepared = read_prepared(run.step("prepare"))
    device = choose_device(run.config.train.device)
    network.to(device)
    test = prepared.of("test")
    features = ContentCache(run.config.cache / FEATURES)
    model = FrozenBackbone(network, device, features) if checkpoint.has_frozen_backbone else network
    test_logits_NK = compute_logits(model, test, checkpoint.preprocess, device)
    with np.load(run.step("train") / CALIBRATION, allow_pickle=False) as calibration:
        logits_MK, targets_M = calibration["logits"], calibration["targets"]
    temperature = best_temperature(logits_MK, targets_M)
    evaluation = evaluate(test_logits_NK, test, checkpoint.labels, temperature=temperature, bins=run.config.evaluate.bins)
    evaluation = evaluation.model_copy(update={"device": device.type})
    write_evaluation(folder, evaluation)
    probabilities_NK = softmax(test_logits_NK / temperature)
    correct = int((logits_MK.argmax(1) == targets_M).sum())
    write_findings(folder, find_in_evaluation(evaluation, probabilities_NK, correct, len(targets_M)))
    np.savez_compressed(folder / "test.npz", probabilities=probabilities_NK, targets=_targets(test))
    write_confusion_png(folder / "confusion.png", np.asarray(evaluation.confusion), checkpoint.labels)
    write_reliability_png(folder / "reliability.png", probabilities_NK, _targets(test), run.config.evaluate.bins)


def compute_logits(
    network: nn.Module, samples: Sequence[Sample], spec: PreprocessSpec, device: torch.device, batch_size: int = CPU_BATCH
) -> np.ndarray:
    """Compute the logits of samples from their files, in evaluation mode and float32.

    Args:
        network: from uint8 pixels (N, H, W, 3) to logits: a `Network`, or a `FrozenBackbone`.
        samples: in the order of the rows.
        spec: the network's preprocessing.
        device: of the network.
        batch_size: images a batch.

    Returns:
        float32, shape (N, K), on the CPU.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: a logit is not finite, or a batch does not fit into memory.
    """
    network.eval()
    batches = track(stream_pixels(samples, spec, batch_size), "evaluating images", len(samples), step=batch_size)
    torch.backends.cudnn.allow_tf32 = False  # otherwise a GPU's convolutions round to 10 bits
    with torch.inference_mode(), memory_errors(batch_size):
        logits = [network(to_device(torch.from_numpy(batch_NHW3), device)).float().cpu() for batch_NHW3 in batches]
    logits_NK = torch.cat(logits).numpy()
    finite_N = np.isfinite(logits_NK).all(1)
    if not finite_N.all():
        raise TrainingError(
            f"the network's output is not finite for {len(finite_N) - finite_N.sum()} of {len(finite_N)} images, the first is "
            f"{samples[int(finite_N.argmin())].name}; check that image, or train again with a lower train.learning_rate",
            code="logits_not_finite",
        )
    return logits_NK


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
