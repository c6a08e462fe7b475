"""Strategy `few-shot`: each class is the mean of its features; nothing is trained by gradients.

Nearest class mean, in the metric of the features' covariance within classes (linear discriminant analysis), which is estimated
over all classes and shrunk towards a multiple of the identity, because a few images do not determine it. The distances are
linear in the features, so that the result is a linear layer like any other.

Shapes: M images, V views and the plain image, D features, K classes.
"""

import numpy as np
import torch

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.models.devices import one_blas_thread
from edgeline.pipeline.training.context import HeldOutLogits, TrainingContext, TrainingResult
from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.pipeline.training.strategies.head import feature_tables, held_out_folds, number_of_views

SHRINKAGE = 0.8
"""Share of the identity in the covariance. 0.5 to 0.95 were equally good on flowers, cells and digits (ADR 0021)."""


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
    logits_MK = np.zeros((len(samples), len(context.prepared.labels)), np.float32)
    for fold in range(folds_M.max() + 1):
        held_M = folds_M == fold
        weight_KD, bias_K = class_means(tables_VMD[:, ~held_M], targets_M[~held_M])
        logits_MK[held_M] = tables_VMD[0, held_M] @ weight_KD.T + bias_K
    learned_M = np.full(len(samples), True) if context.config.refit else folds_M == NEVER
    weight_KD, bias_K = class_means(tables_VMD[:, learned_M], targets_M[learned_M])
    with torch.no_grad():
        context.network.classifier.weight.copy_(torch.from_numpy(weight_KD))
        context.network.classifier.bias.copy_(torch.from_numpy(bias_K))
    held_out = _held_out(samples, targets_M, folds_M, logits_MK)
    accuracy = float((held_out.logits_NK.argmax(1) == held_out.targets_N).mean())
    history = TrainingHistory()
    history.add(0.0, 1 - accuracy, accuracy)
    return TrainingResult(history=history, calibration=held_out, out_of_fold=held_out)


def class_means(tables_VMD: np.ndarray, targets_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the linear layer that gives the log-likelihood of each class up to a constant.

    Args:
        tables_VMD: float32, the plain features and those of each view.
        targets_M: class of each image.

    Returns:
        Weights, float32 (K, D), and biases, float32 (K,).
    """
    classes = int(targets_M.max()) + 1
    rows_RD = tables_VMD.reshape(-1, tables_VMD.shape[2]).astype(np.float64)
    targets_R = np.tile(targets_M, len(tables_VMD))
    means_KD = np.stack([rows_RD[targets_R == k].mean(0) for k in range(classes)])
    center_D = means_KD.mean(0)
    within_RD = rows_RD - means_KD[targets_R]
    variance = max(float((within_RD**2).mean()), 1e-12)
    covariance_DD = (1 - SHRINKAGE) * (within_RD.T @ within_RD) / len(within_RD) + SHRINKAGE * variance * np.eye(len(center_D))
    weight_KD = np.linalg.solve(covariance_DD, (means_KD - center_D).T).T
    bias_K = -((means_KD + center_D) * weight_KD).sum(1) / 2
    return weight_KD.astype(np.float32), bias_K.astype(np.float32)


def _held_out(samples: list[Sample], targets_M: np.ndarray, folds_M: np.ndarray, logits_MK: np.ndarray) -> HeldOutLogits:
    rows = np.flatnonzero(folds_M != NEVER)
    return HeldOutLogits(logits_NK=logits_MK[rows], targets_N=targets_M[rows], images=[samples[row].sha256 for row in rows])
