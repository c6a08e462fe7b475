"""What a named layer computes from an image: its strongest channels.

Shapes: C channels, h x w positions, H x W the model's input.
"""

import difflib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.models.backbones import Network
from edgeline.serve.errors import ConfigError

SHOWN = 16
MIN_POSITIONS = 100
"""Of the layer that is shown by default: deeper maps are too coarse to recognize anything in."""


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The strongest channels of a layer for one image, strongest first."""

    channels: list[int]
    maps_Chw: np.ndarray
    """float32."""


def map_layers(network: Network, size: tuple[int, int]) -> dict[str, int]:
    """The layers of the backbone whose output is a map, from the input on, each with its number of positions.

    Args:
        network: in evaluation mode, on the CPU.
        size: height and width of the model's input.
    """
    found: dict[str, int] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            found[name] = output.shape[2:].numel()

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in network.backbone.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            network.features(torch.full((1, 3, *size), 127.0))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def choose_layer(network: Network, name: str | None, size: tuple[int, int]) -> str:
    """Return the name of a layer with feature maps: the given one, or the last with 100 positions.

    Raises:
        ConfigError: there is none of this name, or its output is not a map; the message has the nearest ones.
    """
    known = map_layers(network, size)
    if not known:
        raise ConfigError("this network has no layer with feature maps", code="layer_unknown")
    if name is None:
        return [each for each, positions in known.items() if positions >= MIN_POSITIONS or positions == max(known.values())][-1]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)[:3]
        raise ConfigError(f"no layer {name!r} with feature maps; the nearest are {', '.join(near)}", code="layer_unknown")
    return name


def feature_maps(network: Network, layer: str, pixels_HW3: np.ndarray) -> FeatureMaps:
    """Compute the channels of a layer that vary most over an image, at most 16.

    Args:
        network: in evaluation mode, on the CPU.
        layer: as `choose_layer` returns it.
        pixels_HW3: uint8.
    """
    outputs: list[Tensor] = []
    hook = network.backbone.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with torch.inference_mode():
            network.features(torch.tensor(pixels_HW3[None]).permute(0, 3, 1, 2).float())
    finally:
        hook.remove()
    maps_Chw = outputs[0][0].float().numpy()
    strongest = np.argsort(-maps_Chw.std((1, 2)), kind="stable")[:SHOWN]
    return FeatureMaps(strongest.tolist(), maps_Chw[strongest])
