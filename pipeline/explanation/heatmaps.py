"""Where in an image a network finds a class: class activation maps and input gradients.

A class activation map (Zhou et al. 2016) is exact for networks that average their last map and apply one linear layer: its mean
is the class's logit. Input gradients (Simonyan et al. 2014) exist for every network: how much each pixel changes the logit.

Shapes: N images, K classes, C channels, h x w positions of the last map, H x W the model's input.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgeline.pipeline.models.backbones import Network

SAME_FEATURES = 1e-4
"""Two float32 sums in another order differ by less than this share of the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heatmaps:
    """Heatmaps of one class for each of some images."""

    cam_Nhw: np.ndarray | None
    """Class activation map of the class, in logits; None if the network does not average its last map."""
    gradient_NHW: np.ndarray
    """Largest absolute derivative of the class's logit over the colors of a pixel."""


@contextmanager
def recorded_maps(network: Network) -> Iterator[list[Tensor]]:
    """Record the outputs of layers that may be the map that the classifier reads the average of."""
    maps: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[1] == network.classifier.in_features:
            maps.extend([output] if output.shape[2:].numel() > 1 else [])  # a map of one position has been averaged already

    hooks = [module.register_forward_hook(keep) for module in network.backbone.modules()]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def last_map(maps: list[Tensor], embedding_NC: Tensor) -> Tensor | None:
    """Return the last recorded map whose average is the embedding, (N, C, h, w); None if there is none."""
    for map_NChw in reversed(maps):
        averaged_NC = map_NChw.mean((2, 3))
        if averaged_NC.shape == embedding_NC.shape:
            difference = (averaged_NC - embedding_NC).abs().max()
            if difference <= SAME_FEATURES * embedding_NC.abs().max():
                return map_NChw
    return None


def compute_heatmaps(network: Network, pixels_NHW3: np.ndarray, classes_N: np.ndarray) -> Heatmaps:
    """Compute both heatmaps of a class for each image, one image at a time.

    Args:
        network: in evaluation mode, on the CPU.
        pixels_NHW3: uint8.
        classes_N: index of the class whose heatmaps are computed, for each image.
    """
    cams, gradients = [], []
    for pixels_HW3, index in zip(pixels_NHW3, classes_N.tolist(), strict=True):
        images_1CHW = torch.tensor(pixels_HW3[None]).permute(0, 3, 1, 2).float().requires_grad_()
        with torch.enable_grad(), recorded_maps(network) as maps:
            embedding_1C = network.features(images_1CHW)
            logit = network.head(embedding_1C)[0, index]
            [gradient_1CHW] = torch.autograd.grad(logit, images_1CHW)
        gradients.append(gradient_1CHW[0].abs().amax(0).numpy())
        map_1Chw = last_map(maps, embedding_1C)
        if map_1Chw is not None:
            weight_C, bias = network.classifier.weight[index], network.classifier.bias[index]
            cams.append((torch.einsum("chw,c->hw", map_1Chw[0], weight_C) + bias).detach().numpy())
    return Heatmaps(
        cam_Nhw=np.stack(cams) if len(cams) == len(pixels_NHW3) and cams else None, gradient_NHW=np.stack(gradients)
    )
