"""Train linear heads on cached features: one for each fold, and the one that ships, all at once.

Each fold's head is trained without the fold's images and gives their logits (cross-fitting). These out-of-fold logits of all
images choose the epoch that ships and fit the temperature, and they find likely label errors. All heads get the same batches,
and an image's loss does not count for the head of its own fold: reading and dropping features costs the same as for one. Heads
with other settings can be trained side by side with them, for a sweep.

Shapes: M images, N of them with a fold, R rows (each image once for its plain features and once for each view), B rows in a
batch, D features, K classes, F heads.
"""

import math
from collections.abc import Collection, Sequence
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
    return train_side_by_side(data, [config], class_weights_K, seed)[0]


def train_side_by_side(data: HeadData, configs: Sequence[TrainConfig], class_weights_K: Tensor, seed: int) -> list[TrainedHead]:
    """Train heads with several settings on the same batches; each gets exactly the weights that `train_heads` gives it alone.

    Args:
        data: as for `train_heads`.
        configs: they differ in learning rate, weight decay, dropout and label smoothing only.
        class_weights_K: loss weight of each class, float32.
        seed: the same seed and data give the same weights.

    Raises:
        TrainingError: a loss is not finite.
    """
    config, classes, features = configs[0], len(class_weights_K), data.tables[0].shape[1]
    rows = FeatureRows(data.tables)
    own_fold = list(range(int(data.folds_M.max()) + 1)) + [NO_FOLD] * config.refit
    folds_R = torch.from_numpy(np.tile(data.folds_M, len(data.tables)))
    targets_R = torch.from_numpy(np.tile(data.targets_M, len(data.tables)))
    learns_RF = folds_R[:, None] != torch.tensor(own_fold)
    held_rows_N = np.flatnonzero(data.folds_M != NEVER)
    held_folds_N, held_targets_N = folds_R[held_rows_N], targets_R[held_rows_N]

    generator = torch.Generator().manual_seed(seed)
    noise = np.random.Generator(np.random.SFC64(seed))  # of dropout, the same for all heads
    heads = [_Heads(own, (len(own_fold), classes, features)) for own in configs]
    used_R, epochs = torch.from_numpy(np.flatnonzero(learns_RF[:, -1])), config.epochs or EPOCHS
    for epoch in track(range(1, epochs + 1), "training the head", epochs):
        active = [head for head in heads if not head.history.should_stop(config.patience)]
        if not active:
            break
        totals = [0.0] * len(active)
        for batch_B in torch.split(used_R[torch.randperm(len(used_R), generator=generator)], config.batch_size):
            dropped = _drop(rows[batch_B.numpy()], {head.config.dropout for head in active}, noise)
            for number, head in enumerate(active):
                features_BD = dropped[head.config.dropout]
                loss = head.step(features_BD, targets_R[batch_B], learns_RF[batch_B], class_weights_K)
                check_finite(loss, epoch)
                totals[number] += loss * len(batch_B)
        for head, total in zip(active, totals, strict=True):
            logits_NK = head.held_out_logits(rows, held_rows_N, held_folds_N)
            held_loss = functional.cross_entropy(logits_NK, held_targets_N, class_weights_K).item()
            accuracy = (logits_NK.argmax(1) == held_targets_N).float().mean().item()
            if head.history.add(total / len(used_R), held_loss, accuracy):
                head.keep(logits_NK)
    return [head.result(rows, held_rows_N) for head in heads]


class _Heads:
    """The heads with one configuration while they are trained: that of each fold, and the last one, which ships."""

    def __init__(self, config: TrainConfig, shape: tuple[int, int, int]) -> None:
        self.config, self.history = config, TrainingHistory()
        self.weight_FKD = torch.zeros(shape, requires_grad=True)
        self.bias_FK = torch.zeros(shape[:2], requires_grad=True)
        rate = config.learning_rate or LEARNING_RATE
        self.optimizer = build_optimizer([{"params": [self.weight_FKD, self.bias_FK], "lr": rate}], config)
        self.best = (torch.empty(0), torch.empty(0), np.empty(0))

    def step(self, features_BD: Tensor, targets_B: Tensor, learns_BF: Tensor, class_weights_K: Tensor) -> float:
        """Update the weights on a batch and return the loss of the head that ships."""
        logits_BFK = (features_BD @ self.weight_FKD.flatten(0, 1).T).view(len(targets_B), *self.bias_FK.shape) + self.bias_FK
        losses_F = _losses(logits_BFK, targets_B, learns_BF, class_weights_K, smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad()
        losses_F.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return losses_F[-1].item() if math.isfinite(losses_F.sum().item()) else math.nan

    @torch.inference_mode()
    def held_out_logits(self, rows: "FeatureRows", held_rows_N: np.ndarray, held_folds_N: Tensor) -> Tensor:
        """Logits of the images with a fold, float32 (N, K), by the heads of their folds."""
        logits_NK = torch.empty(len(held_rows_N), self.bias_FK.shape[1])
        for fold in np.unique(held_folds_N.numpy()).tolist():
            here_N = held_folds_N == fold
            for part in np.array_split(np.flatnonzero(here_N.numpy()), max(1, int(here_N.sum()) // BLOCK)):
                logits_NK[part] = rows[held_rows_N[part]] @ self.weight_FKD[fold].T + self.bias_FK[fold]
        return logits_NK

    def keep(self, logits_NK: Tensor) -> None:
        """Remember the weights and the held-out logits of this epoch as the best."""
        self.best = (self.weight_FKD[-1].detach().clone(), self.bias_FK[-1].detach().clone(), logits_NK.numpy())

    def result(self, rows: "FeatureRows", held_rows_N: np.ndarray) -> TrainedHead:
        """The best weights, for features as they are in the tables."""
        scaled_KD, bias_K, held_NK = self.best
        weight_KD = scaled_KD / rows.scale
        return TrainedHead(
            weight_KD=weight_KD,
            bias_K=bias_K - weight_KD @ rows.mean_D,
            held_out_rows=held_rows_N,
            held_out_logits_NK=held_NK,
            history=self.history,
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


def _drop(features_BD: Tensor, probabilities: Collection[float], noise: np.random.Generator) -> dict[float, Tensor]:
    """Drop features with each probability, for all from one draw. NumPy draws three times as fast as torch."""
    drawn_BD = torch.from_numpy(noise.random(features_BD.shape, np.float32)) if any(probabilities) else features_BD
    return {p: features_BD * ((drawn_BD >= p) / (1 - p)) if p else features_BD for p in probabilities}


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
