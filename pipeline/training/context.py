"""The contract of every training strategy: a function from `TrainingContext` to `TrainingResult`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.runs.findings import Finding
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.class_weights import class_weights
from edgeline.pipeline.training.history import TrainingHistory
from edgeline.serve.preprocess import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """Everything a strategy needs. The network is trained in place.

    Raises:
        DataError: a class has no training image, or the validation images are all of one class.
    """

    network: Network
    """As `pipeline.models.backbones.build` returns it."""
    spec: PreprocessSpec
    """The network's preprocessing."""
    prepared: Prepared
    """The samples. Only the train and val splits are used."""
    config: TrainConfig
    seed: int
    """The same seed, data and machine give the same weights."""
    folder: Path
    """For working files. They survive a killed process, and a later call finds them."""
    cache: Path
    """Folder of results that are shared between runs."""
    device: torch.device
    pretrained: bool = True
    """Whether the network starts with pretrained weights."""
    class_weights_K: Tensor = field(init=False)
    """Loss weight of each class, float32 (K,), on the CPU."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_weights_K", class_weights(self.prepared, self.config))


@dataclass(frozen=True, kw_only=True)
class HeldOutLogits:
    """Logits of images from weights that were not trained on them."""

    logits_NK: np.ndarray
    """float32."""
    targets_N: np.ndarray
    images: list[str]
    """SHA-256 of each image's file."""

    def save(self, path: Path) -> None:
        """Write an .npz file with the arrays `logits`, `targets` and `images`."""
        np.savez_compressed(path, logits=self.logits_NK, targets=self.targets_N, images=np.array(self.images))


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a strategy returns. The network holds the trained weights."""

    history: TrainingHistory
    calibration: HeldOutLogits
    """The temperature is fitted on these."""
    out_of_fold: HeldOutLogits | None = None
    """Cross-fitted logits of a head on the frozen backbone for all training and validation images, if one was trained."""
    findings: list[Finding] = field(default_factory=list)
    """What the strategy noticed or decided."""
    strategy: str = ""
    """The strategy that was chosen, if not the configured one."""


Strategy = Callable[[TrainingContext], TrainingResult]
