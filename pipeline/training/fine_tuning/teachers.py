"""Networks whose answers another network learns (knowledge distillation; Hinton et al. 2015).

Teachers and student see the same augmented view of an image (Beyer et al. 2022, "Knowledge distillation: A good teacher is
patient and consistent"). The teachers' logits of a view are cached by content: a resumed training, and the one on training and
validation images together, see the same views again.

Shapes: B images in a batch, H x W the student's input, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import autocast
from edgeline.pipeline.models.frozen_features import backbone_digest
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.step import step_key
from edgeline.serve.preprocess import PreprocessSpec

PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network for the student's classes."""

    network: Network
    """In evaluation mode, on the device. Its last layer's outputs are in the order of the student's classes."""
    spec: PreprocessSpec
    """Its input's size: the views are resized to it."""

    def logits(self, pixels_BHW3: Tensor) -> Tensor:
        """Logits of views, uint8 (B, H, W, 3): float32 (B, K), on the device."""
        images_BCHW = pixels_BHW3.permute(0, 3, 1, 2).float()
        size = (self.spec.height, self.spec.width)
        if images_BCHW.shape[2:] != size:
            images_BCHW = functional.interpolate(images_BCHW, size, mode="bilinear", antialias=True)
        with torch.inference_mode(), autocast(pixels_BHW3.device):
            logits_BK: Tensor = self.network.head(self.network.features(images_BCHW))
        return logits_BK.float().clone()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the network and its input's size."""
        head = {name: tensor.tolist() for name, tensor in self.network.head.state_dict().items()}
        inputs = {"backbone": backbone_digest(self.network), "head": head, "size": [self.spec.height, self.spec.width]}
        return step_key(inputs, code_digest(__name__, "edgeline.pipeline.training.augment"), PACKAGES)


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """One or more teachers, of which the student learns the mean."""

    teachers: Sequence[Teacher]
    temperature: float
    """Of both probabilities."""
    alpha: float
    """Share of the teachers in the loss; the rest is that of the labels."""
    unlabeled: Sequence[Sample]
    """Further images, of which the student learns the teachers' answers only."""
    student: PreprocessSpec
    """The preprocessing before the views are drawn."""
    cache: ContentCache

    def probabilities(self, pixels_BHW3: Tensor, samples: Sequence[Sample], view: str) -> Tensor:
        """Mean of the teachers' probabilities at the temperature, float32 (B, K), on the pixels' device.

        Args:
            pixels_BHW3: a view of each image, uint8.
            samples: the images.
            view: name of the view, for the cache.
        """
        taught = [
            torch.softmax(self._logits(teacher, pixels_BHW3, samples, view) / self.temperature, 1) for teacher in self.teachers
        ]
        return torch.stack(taught).mean(0)

    def blend(self, label_loss: Tensor, logits_BK: Tensor, taught_BK: Tensor, images: int) -> Tensor:
        """Add the loss of the teachers to that of the labels.

        The divergence is multiplied by the squared temperature, which makes its gradients as large as those of the labels.

        Args:
            label_loss: of a part of a batch.
            logits_BK: the student's, of the part.
            taught_BK: the teachers' probabilities, of the part.
            images: number of images of the whole batch.
        """
        log_BK = torch.log_softmax(logits_BK.float() / self.temperature, 1)
        divergence = functional.kl_div(log_BK, taught_BK, reduction="sum") / images
        return (1 - self.alpha) * label_loss + self.alpha * self.temperature**2 * divergence

    def _logits(self, teacher: Teacher, pixels_BHW3: Tensor, samples: Sequence[Sample], view: str) -> Tensor:
        prefix = f"teacher:{teacher.digest}:{self.student.digest()}:{pixels_BHW3.device.type}:{view}"
        keys = [f"{prefix}:{sample.sha256}" for sample in samples]
        rows = dict(self.cache.get(keys))
        missing = {key: row for row, key in enumerate(keys) if key not in rows}
        if missing:
            logits_MK = teacher.logits(pixels_BHW3[list(missing.values())]).cpu().numpy()
            rows |= (computed := {key: logits_K.tobytes() for key, logits_K in zip(missing, logits_MK, strict=True)})
            self.cache.put(computed.items())
        table_BK = np.stack([np.frombuffer(rows[key], np.float32) for key in keys])
        return torch.from_numpy(table_BK).to(pixels_BHW3.device)
