"""Loss weights that make up for classes of different sizes."""

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.train_config import TrainConfig
from edgeline.serve.errors import DataError

EXPONENTS = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
"""By `train.class_weights`: the power of a class's inverse count."""


def class_weights(prepared: Prepared, config: TrainConfig) -> Tensor:
    """Return the loss weight of each class.

    Returns:
        float32, shape (K,). The average over the training images is 1.

    Raises:
        DataError: a class has no training image, or the validation images are all of one class.
    """
    counts = np.bincount([s.index for s in prepared.of("train")], minlength=len(prepared.labels))
    if absent := [label for label, count in zip(prepared.labels, counts, strict=True) if not count]:
        raise DataError(f"no training image of {', '.join(absent)}; every class needs one", code="empty_class")
    if len({s.index for s in prepared.of("val")}) < 2:
        raise DataError(
            "the validation split has images of fewer than two classes, so the best epoch cannot be chosen; "
            "add images, or raise prepare.val_share",
            code="one_class_fold",
        )
    weights_K = (1 / counts) ** EXPONENTS[config.class_weights]
    return torch.from_numpy(weights_K * counts.sum() / (weights_K * counts).sum()).float()
