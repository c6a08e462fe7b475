"""Train linear heads on cached features: one for each fold, and the one that ships, all at once.

Each fold's head is trained without the fold's images and gives their logits (cross-fitting). These out-of-fold logits of all
images choose the epoch that ships and fit the temperature, and they find likely label errors. All heads get the same batches,
and an image's loss does not count for the head of its own fold: reading and dropping features costs the same as for one.

Shapes: M images, N of them with a fold, R rows (each image once for its plain features and once for each view), B rows in a
batch, D features, K classes, F heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeline.pipeline.progress import track
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.history import TrainingHistory, check_finite
from edgeline.pipeline.training.optimization import build_optimizer

EPOCHS = 200
LEARNING_RATE = 5e-4
NO_FOLD = -2
"""Of the head that is trained on every image; no image has it."""
BLOCK = 4096
"""Rows that are read from a table at a time."""


@dataclass(frozen=True, kw_only=True)
class HeadData:
    """The features of images, their views and their folds."""

    tables: Sequence[np.ndarray]
    """float32 (M, D), memory-mapped: the plain images, then each view of them."""
    targets_M: np.ndarray
    folds_M: np.ndarray
    """As `assign_folds` returns it."""


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """The head that ships, and the logits that the heads of the folds give."""

    weight_KD: Tensor
    bias_K: Tensor
    """For features as they are in the tables."""
    held_out_rows: np.ndarray
    """Positions of the images with a fold, int64."""
    held_out_logits_NK: np.ndarray
    """Their logits by the head that was trained without them, float32."""
    history: TrainingHistory
    """Validation figures are those of the held-out images."""


def train_heads(data: HeadData, config: TrainConfig, class_weights_K: Tensor, seed: int) -> TrainedHead:
    """Train until the held-out loss has not improved for `patience` epochs; the epoch with the best one ships.

    The head that ships is trained on every image, with `refit`; otherwise it is that of fold 0. An epoch is one pass of it
    over its rows. The features are centered, and scaled by one number so that a learning rate means the same for every
    backbone; both are folded into the weights.

    Args:
        data: at least one image has a fold.
        config: its epochs, batch size, optimizer, learning rate, dropout, label smoothing and patience are used.
        class_weights_K: loss weight of each class, float32.
        seed: the same seed and data give the same weights.

    Raises:
        TrainingError: the loss is not finite.
    """
    rows = FeatureRows(data.tables)
    classes, folds = len(class_weights_K), int(data.folds_M.max()) + 1
    own_fold = list(range(folds)) + [NO_FOLD] * config.refit
    shipped = len(own_fold) - 1
    folds_R = torch.from_numpy(np.tile(data.folds_M, len(data.tables)))
    targets_R = torch.from_numpy(np.tile(data.targets_M, len(data.tables)))
    learns_RF = folds_R[:, None] != torch.tensor(own_fold)
    held_rows_N = np.flatnonzero(data.folds_M != NEVER)
    held_folds_N, held_targets_N = folds_R[held_rows_N], targets_R[held_rows_N]

    generator = torch.Generator().manual_seed(seed)
    weight_FKD = torch.zeros(len(own_fold), classes, data.tables[0].shape[1], requires_grad=True)
    bias_FK = torch.zeros(len(own_fold), classes, requires_grad=True)
    optimizer = build_optimizer([{"params": [weight_FKD, bias_FK], "lr": config.learning_rate or LEARNING_RATE}], config)
    used_R, epochs = torch.from_numpy(np.flatnonzero(learns_RF[:, shipped])), config.epochs or EPOCHS
    history, best = TrainingHistory(), (torch.empty(0), torch.empty(0), np.empty(0))
    for epoch in track(range(1, epochs + 1), "training the head", epochs):
        batches = torch.split(used_R[torch.randperm(len(used_R), generator=generator)], config.batch_size)
        total = 0.0
        for batch_B in batches:
            features_BD = _drop(rows[batch_B.numpy()], config.dropout, generator)
            logits_BFK = (features_BD @ weight_FKD.flatten(0, 1).T).view(len(batch_B), -1, classes) + bias_FK
            losses_F = _losses(
                logits_BFK, targets_R[batch_B], learns_RF[batch_B], class_weights_K, smoothing=config.label_smoothing
            )
            check_finite(losses_F.sum().item(), epoch)
            optimizer.zero_grad()
            losses_F.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += losses_F[shipped].item() * len(batch_B)
        with torch.inference_mode():
            logits_NK = _held_out_logits(rows, held_rows_N, held_folds_N, weight_FKD, bias_FK)
            held_loss = functional.cross_entropy(logits_NK, held_targets_N, class_weights_K).item()
        accuracy = (logits_NK.argmax(1) == held_targets_N).float().mean().item()
        if history.add(total / len(used_R), held_loss, accuracy):
            best = (weight_FKD[shipped].detach().clone(), bias_FK[shipped].detach().clone(), logits_NK.numpy())
        if history.should_stop(config.patience):
            break
    weight_KD, bias_K, held_NK = best
    weight_KD = weight_KD / rows.scale
    return TrainedHead(
        weight_KD=weight_KD,
        bias_K=bias_K - weight_KD @ rows.mean_D,
        held_out_rows=held_rows_N,
        held_out_logits_NK=held_NK,
        history=history,
    )


class FeatureRows:
    """Rows of feature tables as tensors, centered and scaled. They are read from the tables on access."""

    def __init__(self, tables: Sequence[np.ndarray]) -> None:
        self.tables = tables
        mean_D = np.mean(tables[0], axis=0, dtype=np.float64)
        blocks = np.array_split(tables[0], max(1, len(tables[0]) // BLOCK))
        square = np.mean([np.mean((block - mean_D) ** 2) for block in blocks])
        self.mean_D = torch.from_numpy(mean_D).float()
        """Of the plain images."""
        self.scale = max(float(np.sqrt(square)), 1e-6)
        """Root mean square of what is left after centering."""

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """Return the rows at positions, which count through all tables: float32, of the shape of the positions and D."""
        table_of, row_of = np.divmod(positions, len(self.tables[0]))
        features = np.empty((*positions.shape, self.tables[0].shape[1]), np.float32)
        for number, table in enumerate(self.tables):
            here = table_of == number
            features[here] = table[row_of[here]]
        return (torch.from_numpy(features) - self.mean_D) / self.scale


def _drop(features_BD: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Dropout with a generator, which torch's own does not take."""
    if not probability:
        return features_BD
    return features_BD * torch.empty_like(features_BD).bernoulli_(1 - probability, generator=generator) / (1 - probability)


def _losses(logits_BFK: Tensor, targets_B: Tensor, learns_BF: Tensor, class_weights_K: Tensor, *, smoothing: float) -> Tensor:
    """Weighted mean loss of each head over the images of a batch that it is trained on."""
    losses_BF = functional.cross_entropy(
        logits_BFK.flatten(0, 1),
        targets_B.repeat_interleave(logits_BFK.shape[1]),
        class_weights_K,
        reduction="none",
        label_smoothing=smoothing,
    ).view(learns_BF.shape)
    weights_BF = learns_BF * class_weights_K[targets_B][:, None]
    return (losses_BF * learns_BF).sum(0) / weights_BF.sum(0).clamp_min(1e-12)


def _held_out_logits(
    rows: FeatureRows, held_rows_N: np.ndarray, held_folds_N: Tensor, weight_FKD: Tensor, bias_FK: Tensor
) -> Tensor:
    logits_NK = torch.empty(len(held_rows_N), weight_FKD.shape[1])
    for fold in np.unique(held_folds_N.numpy()).tolist():
        here_N = held_folds_N == fold
        for part in np.array_split(np.flatnonzero(here_N.numpy()), max(1, int(here_N.sum()) // BLOCK)):
            logits_NK[part] = rows[held_rows_N[part]] @ weight_FKD[fold].T + bias_FK[fold]
    return logits_NK
