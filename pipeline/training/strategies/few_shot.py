"""Strategy `few-shot`: each class is the mean of its features; nothing is trained by gradients.

Two metrics are compared on held-out images, and the better one is used:

- `distance`: to the class mean, in the metric of the features' covariance within classes (linear discriminant analysis). It is
  estimated over all classes and shrunk towards a multiple of the identity, because a few images do not determine it.
- `cosine`: between the features and the mean direction of each class. The norm of an image's features scales all its cosines
  alike, so without it the classes have the same order.

Both are linear in the features, so that the result is a linear layer like any other (ADR 0021).

Shapes: M images, N of them held out, V views and the plain image, R rows of all views, D features, K classes.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional

from edgeline.pipeline.models.devices import one_blas_thread
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.pipeline.training.strategies.head import feature_tables, held_out_folds, number_of_views

SHRINKAGE = 0.8
"""Share of the identity in the covariance. 0.5 to 0.95 were equally good on flowers, cells and digits (ADR 0021)."""
SCALES = np.geomspace(1e-2, 1e3, 101)
"""Scales of the logits, relative to their standard deviation, that are compared."""

Layer = tuple[np.ndarray, np.ndarray]
"""Weights (K, D) and biases (K,), float64."""


@one_blas_thread()
def fit(context: TrainingContext) -> TrainingResult:
    """Set a network's head in place.

    Raises:
        DataError: a file is missing or has changed.
        TrainingError: out of memory, or the features are not finite.
    """
    samples = context.prepared.of("train") + context.prepared.of("val")
    tables_VMD = np.stack(
        feature_tables(context, samples, number_of_views(context.config, len(samples), len(context.prepared.labels)))
    )
    targets_M, folds_M = np.array([sample.index for sample in samples]), held_out_folds(samples, context.config)
    rows_N = np.flatnonzero(folds_M != NEVER)
    targets_N = targets_M[rows_N]
    logits = {name: held_out_logits(metric, tables_VMD, targets_M, folds_M) for name, metric in METRICS.items()}
    fitted = {name: fit_scale(logits_NK, targets_N) for name, logits_NK in logits.items()}
    name = min(fitted, key=lambda metric: fitted[metric][0])
    (loss, scale), logits_NK = fitted[name], logits[name]
    learned_M = np.full(len(samples), True) if context.config.refit else folds_M == NEVER
    weight_KD, bias_K = METRICS[name](tables_VMD[:, learned_M], targets_M[learned_M])
    with torch.no_grad():
        context.network.classifier.weight.copy_(torch.from_numpy(weight_KD * scale))
        context.network.classifier.bias.copy_(torch.from_numpy(bias_K * scale))
    held_out = HeldOutLogits(
        logits_NK=(logits_NK * scale).astype(np.float32), targets_N=targets_N, images=[samples[row].sha256 for row in rows_N]
    )
    history = TrainingHistory()
    history.add(0.0, loss, float((logits_NK.argmax(1) == targets_N).mean()))
    losses = ", ".join(f"{found:.2f} with `{metric}`" for metric, (found, _) in fitted.items())
    message = f"`few-shot` uses the metric `{name}`: the loss on held-out images is {losses}."
    finding = Finding(code="few_shot_metric", message=message, level="note")
    return TrainingResult(history=history, calibration=held_out, out_of_fold=held_out, findings=[finding])


def class_means(tables_VMD: np.ndarray, targets_M: np.ndarray) -> Layer:
    """Return the linear layer that gives the log-likelihood of each class up to a constant.

    Args:
        tables_VMD: float32, the plain features and those of each view.
        targets_M: class of each image.
    """
    rows_RD, targets_R, means_KD = _rows(tables_VMD, targets_M)
    center_D = means_KD.mean(0)
    within_RD = rows_RD - means_KD[targets_R]
    variance = max(float((within_RD**2).mean()), 1e-12)
    covariance_DD = (1 - SHRINKAGE) * (within_RD.T @ within_RD) / len(within_RD) + SHRINKAGE * variance * np.eye(len(center_D))
    weight_KD = np.linalg.solve(covariance_DD, (means_KD - center_D).T).T
    return weight_KD, -((means_KD + center_D) * weight_KD).sum(1) / 2


def class_directions(tables_VMD: np.ndarray, targets_M: np.ndarray) -> Layer:
    """Return the linear layer that gives the cosine to each class's mean direction, times the norm of the features.

    Directions are taken from the mean of all classes, because features that are never negative all point the same way.

    Args:
        tables_VMD: float32, the plain features and those of each view.
        targets_M: class of each image.
    """
    rows_RD, targets_R, means_KD = _rows(tables_VMD, targets_M)
    center_D = means_KD.mean(0)
    directions_RD = _normalized(rows_RD - center_D)
    weight_KD = _normalized(np.stack([directions_RD[targets_R == k].mean(0) for k in range(len(means_KD))]))
    return weight_KD, -weight_KD @ center_D


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], Layer]] = {"distance": class_means, "cosine": class_directions}
"""By name."""


def fit_scale(logits_NK: np.ndarray, targets_N: np.ndarray) -> tuple[float, float]:
    """Return the lowest loss of logits over all scales, and the scale.

    The loss expects that one of N + 2 images is wrong (Platt 1999), so that the scale is finite without any mistake.
    """
    logits, targets = torch.from_numpy(logits_NK), torch.from_numpy(targets_N)
    scales = SCALES / max(float(logits_NK.std()), 1e-12)
    losses = [
        functional.cross_entropy(logits * scale, targets, label_smoothing=1 / (len(targets_N) + 2)).item() for scale in scales
    ]
    return min(losses), float(scales[int(np.argmin(losses))])


def held_out_logits(
    metric: Callable[[np.ndarray, np.ndarray], Layer], tables_VMD: np.ndarray, targets_M: np.ndarray, folds_M: np.ndarray
) -> np.ndarray:
    """Logits of the images with a fold, float64 (N, K), by means that do not contain them."""
    logits_MK = np.zeros((len(targets_M), int(targets_M.max()) + 1))
    for fold in range(folds_M.max() + 1):
        held_M = folds_M == fold
        weight_KD, bias_K = metric(tables_VMD[:, ~held_M], targets_M[~held_M])
        logits_MK[held_M] = tables_VMD[0, held_M] @ weight_KD.T + bias_K
    return np.asarray(logits_MK[folds_M != NEVER])


def _rows(tables_VMD: np.ndarray, targets_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features of all views, float64 (R, D), the class of each row, and the mean of each class (K, D)."""
    rows_RD = tables_VMD.reshape(-1, tables_VMD.shape[2]).astype(np.float64)
    targets_R = np.tile(targets_M, len(tables_VMD))
    return rows_RD, targets_R, np.stack([rows_RD[targets_R == k].mean(0) for k in range(int(targets_M.max()) + 1)])


def _normalized(rows_RD: np.ndarray) -> np.ndarray:
    return np.asarray(rows_RD / np.maximum(np.linalg.norm(rows_RD, axis=1, keepdims=True), 1e-12))
