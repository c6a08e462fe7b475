"""Features of images in evaluation mode, cached by content: a network whose head alone has changed is not run again.

    logits_NK = FrozenBackbone(network, device, cache)(pixels_NHW3)

The rows are addressed by the digests of the backbone and of the image's pixels, by the code and the libraries, and by what the
rounding depends on: the device and the number of threads. Each batch is filled up to one size, because rounding depends on
the size too; it does not depend on the other images. So a row that is found has the bits that would be computed.

Shapes: N images, D features, H x W the model's input, K classes.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import CPU_BATCH, to_device
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.content_cache import ContentCache, sealed, unsealed
from edgeline.pipeline.runs.step import step_key

PACKAGES = ("torch", "torchvision", "timm")


class FrozenBackbone(nn.Module):
    """Computes what a network computes in evaluation mode, but runs the backbone only for images that are not cached."""

    def __init__(self, network: Network, device: torch.device, cache: ContentCache) -> None:
        super().__init__()
        self.network, self.device, self.cache = network.eval(), device, cache
        inputs = {"backbone": backbone_digest(network), "device": device.type, "threads": torch.get_num_threads()}
        self.prefix = f"evaluation:{step_key(inputs, code_digest(__name__), PACKAGES)}"

    @property
    def head(self) -> nn.Sequential:
        """The network's head, which gets the features."""
        return self.network.head

    def forward(self, pixels_NHW3: Tensor) -> Tensor:
        """Classify uint8 pixels (N, H, W, 3) on any device: logits, float32 (N, K), on the network's device."""
        logits_NK: Tensor = self.network.head(self.features(pixels_NHW3.cpu()))
        return logits_NK

    def features(self, pixels_NHW3: Tensor) -> Tensor:
        """The backbone's features, float32 (N, D), on the network's device.

        Args:
            pixels_NHW3: uint8, on the CPU.
        """
        keys = [f"{self.prefix}:{hashlib.sha256(pixels.numpy().tobytes()).hexdigest()}" for pixels in pixels_NHW3]
        found = {key: row for key, value in self.cache.get(keys) if (row := unsealed(value)) is not None}
        missing = {key: pixels for key, pixels in zip(keys, pixels_NHW3, strict=True) if key not in found}
        for start in range(0, len(missing), CPU_BATCH):
            part = dict(list(missing.items())[start : start + CPU_BATCH])
            rows = {key: row_D.tobytes() for key, row_D in zip(part, self._compute(list(part.values())), strict=True)}
            self.cache.put((key, sealed(row)) for key, row in rows.items())
            found |= rows
        table_ND = np.stack([np.frombuffer(found[key], np.float32) for key in keys])
        return torch.from_numpy(table_ND).to(self.device)

    def _compute(self, pixels: list[Tensor]) -> np.ndarray:
        """Run the backbone on a full batch, and return the rows of these images."""
        batch_NHW3 = torch.stack(pixels + pixels[:1] * (CPU_BATCH - len(pixels)))
        with torch.inference_mode():
            features_ND = self.network.features(to_device(batch_NHW3, self.device).permute(0, 3, 1, 2).float())
        return np.asarray(features_ND[: len(pixels)].float().cpu().numpy())


def backbone_digest(network: Network) -> str:
    """SHA-256 of a backbone's structure, weights and normalization."""
    digest = hashlib.sha256(repr(network.backbone).encode())
    state = {**network.backbone.state_dict(), "mean": network.mean, "std": network.std}
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
