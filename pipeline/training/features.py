"""Features of a frozen backbone, computed once for each image and cached by content.

An image's features depend only on its bytes, the preprocessing, the augmented view, the backbone and the code. They are
cached under these (`ContentCache`), so other runs and a restarted run reuse them. Memory is bounded by a few batches,
whatever the number of images: the resulting table is a memory-mapped file.

Shapes: N images, D features, H x W the model's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import CPU_BATCH, GPU_BATCH, autocast, memory_errors, to_device
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.pipeline.models.frozen_features import backbone_digest
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.step import step_key
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy")

Augment = Callable[[Tensor, Sequence[Sample]], Tensor]
"""Pixels, uint8 (N, H, W, 3), and the samples they belong to; returns the same shape."""


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes the features of samples, or finds them in a cache. The network must not change in the meantime."""

    network: Network
    """Its backbone is used."""
    spec: PreprocessSpec
    cache: ContentCache
    device: torch.device

    def compute(
        self, samples: Sequence[Sample], out: Path, *, view: str = "plain", augment: Augment | None = None
    ) -> np.ndarray:
        """Write the features of samples to a .npy file, computing only those that are not cached.

        Args:
            samples: in the order of the table's rows.
            out: the file to write.
            view: name of the augmented view, for the cache's key.
            augment: applied to the pixels before the backbone.

        Returns:
            float32, shape (N, D), memory-mapped from `out`.

        Raises:
            DataError: a file is missing or has changed.
            TrainingError: out of memory, or the features are not finite.
        """
        settings = {
            "backbone": backbone_digest(self.network),
            "spec": self.spec.digest(),
            "device": self.device.type,
            "view": view,
        }
        prefix = step_key(settings, code_digest(__name__, "edgeline.pipeline.training.augment"), PACKAGES)
        keys = {sample.sha256: f"{prefix}:{sample.sha256}" for sample in samples}
        cached = {key for key, _ in self.cache.get(keys.values())}
        missing = list({s.sha256: s for s in samples if keys[s.sha256] not in cached}.values())
        if missing:
            self._fill_cache(missing, keys, augment)
        table_ND = np.lib.format.open_memmap(out, "w+", np.float32, (len(samples), self.network.classifier.in_features))
        rows = self.cache.get(keys[sample.sha256] for sample in samples)
        for row_D, (_, value) in zip(table_ND, rows, strict=True):
            row_D[:] = np.frombuffer(value, np.float32)
        table_ND.flush()
        return np.asarray(np.load(out, mmap_mode="r"))

    @cached_property
    def _folded(self) -> Network:
        return fold_batch_norm(self.network, self.spec).to(self.device)

    def _fill_cache(self, samples: Sequence[Sample], keys: dict[str, str], augment: Augment | None) -> None:
        on_gpu = self.device.type == "cuda"
        batch_size = GPU_BATCH if on_gpu else CPU_BATCH
        folded = self._folded
        pixels = track(stream_pixels(samples, self.spec, batch_size), "computing features", len(samples), step=batch_size)
        position = 0
        remedy = "choose a smaller model" + (", or train.device=cpu" if on_gpu else "")
        with torch.inference_mode(), autocast(self.device), memory_errors(batch_size, remedy):
            for batch_NHW3 in pixels:
                part = samples[position : position + len(batch_NHW3)]
                position += len(part)
                images_NHW3 = to_device(torch.from_numpy(batch_NHW3), self.device)
                if augment is not None:
                    images_NHW3 = augment(images_NHW3, part)
                images_NCHW = images_NHW3.permute(0, 3, 1, 2).float()
                features_ND = folded.features(images_NCHW).float().cpu().numpy()
                if on_gpu and not np.isfinite(features_ND).all():
                    with torch.autocast("cuda", enabled=False):  # half precision overflowed
                        features_ND = folded.features(images_NCHW).float().cpu().numpy()
                _check_finite(features_ND, part)
                self.cache.put((keys[s.sha256], row_D.tobytes()) for s, row_D in zip(part, features_ND, strict=True))


def _check_finite(features_ND: np.ndarray, samples: Sequence[Sample]) -> None:
    """Reject features that would stay in the cache and spoil every later training."""
    for sample, row_D in zip(samples, features_ND, strict=True):
        if not np.isfinite(row_D).all():
            raise TrainingError(
                f"the backbone's features of {sample.path} are not finite; check that its weights are intact",
                code="features_not_finite",
            )
