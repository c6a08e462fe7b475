"""The history of a training: losses by epoch, the best epoch, and when to stop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeline.pipeline.sources.labels import summarize
from edgeline.serve.errors import TrainingError

MIN_IMPROVEMENT = 1e-4
"""Smallest decrease of the validation loss that counts."""


@dataclass
class TrainingHistory:
    """Losses and accuracy of each epoch so far."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    """`train_loss`, `val_loss` and `val_accuracy` of each."""
    best_epoch: int = 0
    """Counted from 1; 0 before the first epoch."""
    best_loss: float = math.inf
    """Validation loss of the best epoch."""

    def add(self, train_loss: float, val_loss: float, val_accuracy: float) -> bool:
        """Record an epoch and return whether its validation loss is the best so far.

        Raises:
            TrainingError: a loss is not finite.
        """
        epoch = len(self.epochs) + 1
        check_finite(train_loss, epoch)
        check_finite(val_loss, epoch)
        self.epochs.append({"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy})
        if val_loss >= self.best_loss - MIN_IMPROVEMENT:
            return False
        self.best_loss, self.best_epoch = val_loss, epoch
        return True

    def should_stop(self, patience: int) -> bool:
        """Whether the validation loss has not improved for `patience` epochs."""
        return len(self.epochs) - self.best_epoch >= patience


def check_finite(loss: float, epoch: int, images: Sequence[str] = ()) -> None:
    """Reject a loss that is NaN or infinite.

    Args:
        loss: of a batch, or of an epoch.
        epoch: counted from 1.
        images: names of the batch's images, for the message.

    Raises:
        TrainingError: the loss is not finite.
    """
    if not math.isfinite(loss):
        batch = f", in the batch of {summarize(images, 3)}" if images else ""
        raise TrainingError(
            f"the loss became {loss} in epoch {epoch}{batch}; lower train.learning_rate, or look for images of constant color",
            code="loss_not_finite",
        )
