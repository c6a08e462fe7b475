"""Optimizers, learning-rate schedules, loss and mixup, as the configuration names them.

Shapes: B images in a batch, K classes.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.history import TrainingHistory

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises to its peak."""
PLATEAU_EPOCHS, PLATEAU_FACTOR = 2, 0.3
"""With `plateau`: after so many epochs without a better validation loss, the learning rate falls to this share."""


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer.

    Args:
        groups: each has `params` and `lr`.
        config: its optimizer, momentum and weight decay are used.
    """
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(groups, weight_decay=config.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                groups, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=config.weight_decay
            )


def learning_rate_factor(config: TrainConfig, progress: float, history: TrainingHistory) -> float:
    """Return what the peak learning rates are multiplied by.

    `cosine`: a linear warm-up, then half a cosine down to zero. `plateau`: the same warm-up, then lower after each plateau of
    the validation loss. A plateau is read from the history, so that a resumed training follows the same schedule.

    Args:
        config: its schedule is used.
        progress: share of all steps that are done, 0 to 1.
        history: of the epochs so far.
    """
    warm_up = min(1.0, (progress + 0.002) / WARM_UP)
    if config.schedule == "plateau":
        return warm_up * PLATEAU_FACTOR ** plateaus(history)
    return warm_up * 0.5 * (1 + math.cos(math.pi * progress))


def plateaus(history: TrainingHistory) -> int:
    """Count how often the validation loss has not improved for `PLATEAU_EPOCHS` epochs in a row."""
    best, waited, count = math.inf, 0, 0
    for epoch in history.epochs:
        if epoch["val_loss"] < best:
            best, waited = epoch["val_loss"], 0
            continue
        waited += 1
        if waited == PLATEAU_EPOCHS:
            count, waited = count + 1, 0
    return count


UNLABELED = -1
"""Class of an image without a label. It does not count in the loss of the labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftTargets:
    """The classes of a batch's images; two for each mixed image. An image may be `UNLABELED`."""

    first_B: Tensor
    second_B: Tensor | None
    """Classes of the images that were mixed in, if any."""
    share: float
    """Of the first classes."""
    total: float
    """Sum of the weights of the whole batch, of which these may be a share: the loss is divided by it."""
    images: int
    """Number of images of the whole batch."""

    def loss(self, logits_BK: Tensor, rows: slice, class_weights_K: Tensor, smoothing: float) -> Tensor:
        """Contribution of a part of the batch to the weighted mean of the cross entropies.

        Args:
            logits_BK: of the part.
            rows: of the part.
            class_weights_K: float32.
            smoothing: probability spread over the other classes.
        """
        entropy = partial(
            functional.cross_entropy,
            logits_BK.float(),
            weight=class_weights_K,
            reduction="sum",
            label_smoothing=smoothing,
            ignore_index=UNLABELED,
        )
        first: Tensor = entropy(target=self.first_B[rows]) / self.total
        if self.second_B is None:
            return first
        return self.share * first + (1 - self.share) * entropy(target=self.second_B[rows]) / self.total


def label_weights(targets_B: Tensor, class_weights_K: Tensor) -> Tensor:
    """Weight of each image in the mean loss, float32 (B,): that of its class, or 0 without a label."""
    return class_weights_K[targets_B.clamp_min(0)] * (targets_B != UNLABELED)


def mix(pixels_BHW3: Tensor, strength: float) -> tuple[Tensor, Tensor, float]:
    """Mix each image with another one of its batch (mixup; Zhang et al. 2018), drawn from torch's generator.

    Args:
        pixels_BHW3: of any type.
        strength: both parameters of the beta distribution of the share.

    Returns:
        The mixed pixels, float32; the position of each image's partner; and the share of the image itself, 0.5 to 1.
    """
    share = float(torch.distributions.Beta(strength, strength).sample())
    share = max(share, 1 - share)
    partners_B = torch.randperm(len(pixels_BHW3)).to(pixels_BHW3.device)
    pixels = pixels_BHW3.float()
    return share * pixels + (1 - share) * pixels[partners_B], partners_B, share
