"""What a named layer computes from an image: its strongest channels.

Shapes: C channels, h x w positions, H x W the model's input.
"""

import difflib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgeline.pipeline.models.backbones import Network
from edgeline.serve.errors import ConfigError

SHOWN = 16


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The strongest channels of a layer for one image, strongest first."""

    channels: list[int]
    maps_Chw: np.ndarray
    """float32."""


def layer_names(network: Network, size: tuple[int, int]) -> list[str]:
    """The layers of the backbone whose output is a map, in the order of their names.

    Args:
        network: in evaluation mode, on the CPU.
        size: height and width of the model's input.
    """
    found: dict[str, None] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: found.update({name: None}) if _is_map(output) else None)
        for name, module in network.backbone.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            network.features(torch.full((1, 3, *size), 127.0))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, _ in network.backbone.named_modules() if name in found]


def find_layer(network: Network, name: str, size: tuple[int, int]) -> nn.Module:
    """Return a layer of the backbone.

    Raises:
        ConfigError: there is none of this name, or its output is not a map; the message names the nearest ones.
    """
    known = layer_names(network, size)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise ConfigError(f"no layer {name!r} with feature maps; the nearest are {', '.join(near)}", code="layer_unknown")
    return network.backbone.get_submodule(name)


def feature_maps(network: Network, layer: nn.Module, pixels_HW3: np.ndarray) -> FeatureMaps:
    """Compute the channels of a layer that vary most over an image, at most 16.

    Args:
        network: in evaluation mode, on the CPU.
        layer: as `find_layer` returns it.
        pixels_HW3: uint8.
    """
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with torch.inference_mode():
            network.features(torch.from_numpy(pixels_HW3[None]).permute(0, 3, 1, 2).float())
    finally:
        hook.remove()
    maps_Chw = outputs[0][0].float().numpy()
    strongest = np.argsort(-maps_Chw.std((1, 2)), kind="stable")[:SHOWN]
    return FeatureMaps(strongest.tolist(), maps_Chw[strongest])


def _is_map(output: object) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1
