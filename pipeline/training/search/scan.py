"""Held-out predictions of linear heads in closed form, for many strengths of regularization at once.

Least squares on the one-hot classes stands in for the softmax loss. One eigendecomposition for each fold gives the heads of all
strengths. There are two penalties:

- `dropout`: with the squared loss, dropping features is on average a ridge penalty of p / (1 - p) times each feature's variance
  (Wager et al. 2013, "Dropout Training as Adaptive Regularization"). So this is ridge regression on standardized features.
- `ridge`: the same penalty on every weight, with the features scaled as a whole. It stands for weight decay and early stopping.

Shapes: M images, N of them with a fold, R rows (each image once for its plain features and once for each view), D features,
K classes, S strengths, H held-out images of a fold, E = D + K + 1 columns.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.heads import HeadData

Penalty = Literal["dropout", "ridge"]
STRENGTHS: dict[Penalty, np.ndarray] = {
    "dropout": np.round(np.linspace(0, 0.96, 25), 2),
    "ridge": np.round(np.logspace(-3, 3, 25), 4),
}
"""By penalty: probabilities of dropout, or penalties relative to the mean square of a feature."""
LEAST = 1e-4
"""Penalty that dropout 0 gets: with more features than images, least squares alone has no unique solution."""
MAX_ROWS = 10_000
"""Rows that are used at most: whole images, drawn at random. Their float64 features are in memory at once."""


def sample_images(data: HeadData, seed: int) -> HeadData:
    """Return the data, or a random part of its images if it has more than `MAX_ROWS` rows."""
    images = MAX_ROWS // len(data.tables)
    if len(data.targets_M) <= images:
        return data
    kept = np.sort(np.random.default_rng(seed).choice(len(data.targets_M), images, replace=False))
    return HeadData(tables=[table[kept] for table in data.tables], targets_M=data.targets_M[kept], folds_M=data.folds_M[kept])


def scan_penalty(data: HeadData, penalty: Penalty, class_weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Predict the held-out images with heads of all strengths of a penalty.

    Args:
        data: at least one image has a fold.
        penalty: its `STRENGTHS` are computed.
        class_weights: by name, the loss weight of each class, float (K,).

    Returns:
        By the name of the class weights, the predicted classes, int64 (S, N), in the order of the images with a fold.
    """
    rows_RD, strengths_S = _scaled_rows(data, penalty), torch.from_numpy(STRENGTHS[penalty])
    penalties_S = (strengths_S / (1 - strengths_S) if penalty == "dropout" else strengths_S).clamp_min(LEAST)
    targets_R, folds_R = (torch.from_numpy(np.tile(each, len(data.tables))) for each in (data.targets_M, data.folds_M))
    images, held_out_M = len(data.targets_M), data.folds_M != NEVER
    predicted = {}
    for name, weights_K in class_weights.items():
        # One matrix has all that is needed: the second moments of features and classes, and in its last row their sums.
        all_RE = torch.cat([rows_RD, functional.one_hot(targets_R, len(weights_K)).double(), torch.ones(len(rows_RD), 1)], 1)
        weighted_RE = all_RE * weights_K.double()[targets_R, None]
        total_EE = weighted_RE.T @ all_RE
        predicted_SM = torch.zeros(len(penalties_S), images, dtype=torch.int64)
        for fold in range(int(data.folds_M.max()) + 1):
            held_R = folds_R == fold
            learned_EE = total_EE - weighted_RE[held_R].T @ all_RE[held_R]
            held_M = held_R[:images]
            predicted_SM[:, held_M] = _predict(learned_EE, rows_RD[:images][held_M], penalties_S)
        predicted[name] = predicted_SM[:, torch.from_numpy(held_out_M)].numpy()
    return predicted


def _scaled_rows(data: HeadData, penalty: Penalty) -> Tensor:
    """Centered and scaled features, float64 (R, D), or rotated into no more dimensions than there are rows."""
    rows_RD = torch.from_numpy(np.concatenate([np.asarray(table, np.float64) for table in data.tables]))
    rows_RD -= rows_RD[: len(data.targets_M)].mean(0)
    square_D = rows_RD.square().mean(0)
    mean_square = square_D.mean().clamp_min(1e-12)
    rows_RD /= (square_D.clamp_min(1e-6 * mean_square) if penalty == "dropout" else mean_square).sqrt()
    if len(rows_RD) >= rows_RD.shape[1]:
        return rows_RD
    values_R, vectors_RR = torch.linalg.eigh(rows_RD @ rows_RD.T)
    rotated_RR: Tensor = vectors_RR * values_R.clamp_min(0).sqrt()
    return rotated_RR


def _predict(moments_EE: Tensor, held_HD: Tensor, penalties_S: Tensor) -> Tensor:
    """Fit heads of all strengths to the moments of the rows that they learn from, and predict others: int64 (S, H)."""
    features = held_HD.shape[1]
    mean_E = moments_EE[-1] / moments_EE[-1, -1]
    covariance_EE = moments_EE / moments_EE[-1, -1] - mean_E[:, None] * mean_E
    values_D, vectors_DD = torch.linalg.eigh(covariance_EE[:features, :features])
    targets_DK = vectors_DD.T @ covariance_EE[:features, features:-1]
    rotated_HD = (held_HD - mean_E[:features]) @ vectors_DD
    return torch.stack(
        [
            ((rotated_HD / (values_D.clamp_min(0) + penalty)) @ targets_DK + mean_E[features:-1]).argmax(1)
            for penalty in penalties_S
        ]
    )
