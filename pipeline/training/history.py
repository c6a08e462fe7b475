"""The course of a training: losses by epoch, which epoch was best, when to stop."""

import math
from dataclasses import dataclass, field

import numpy as np

from edgeline.serve.errors import TrainingError

MIN_IMPROVEMENT = 1e-4


@dataclass
class Fit:
    """Grows by an epoch at a time."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    """From 1; 0 before the first."""
    best_loss: float = math.inf
    val_logits_NK: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """The best epoch's logits on validation, before the network learned from those images: what calibration is fitted on."""

    def add(self, train_loss: float, val_loss: float, val_accuracy: float) -> bool:
        """Record an epoch and tell whether it is the best so far on validation.

        Raises:
            TrainingError: a loss is not finite.
        """
        epoch = len(self.history) + 1
        check_finite(train_loss, epoch)
        check_finite(val_loss, epoch)
        self.history.append({"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy})
        if val_loss >= self.best_loss - MIN_IMPROVEMENT:
            return False
        self.best_loss, self.best_epoch = val_loss, epoch
        return True

    def should_stop(self, patience: int) -> bool:
        """Whether validation has not improved for that many epochs."""
        return len(self.history) - self.best_epoch >= patience


def check_finite(loss: float, epoch: int) -> None:
    """Refuse a loss that is NaN or infinite.

    Raises:
        TrainingError: it is.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}; lower train.learning_rate, or look for images of constant color",
            code="loss_not_finite",
        )
