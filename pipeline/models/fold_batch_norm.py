"""Batch norms folded into the convolutions before them, which makes inference faster.

Shapes: N images, C channels, H x W the model's input, D features.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from edgeline.pipeline.models.backbones import Network
from edgeline.serve.preprocess import PreprocessSpec

MAX_FOLDING_ERROR = 1e-3
"""Largest difference that folding may make, as a share of the largest feature. Rounding makes a hundredth of it."""


def fold_batch_norm(network: Network, spec: PreprocessSpec) -> Network:
    """Return a copy of a network, for inference, whose batch norms are folded into the convolutions before them.

    One forward pass shows which convolution feeds which norm, without relying on names or tracing: a norm is folded if its
    input is the same tensor object that a convolution returned. Cases that this cannot detect (a tensor that is also used
    elsewhere or changed in place, a convolution that rescales its own weights) change the features. The returned copy is
    then not folded.
    """
    folded = copy.deepcopy(network).eval()
    noise = torch.rand(1, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(0)) * 255
    pairs, expected_ND = _conv_norm_pairs(folded, noise)
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # timm's norms contain the activation that follows them: keep it.
        activation = getattr(norm, "act", None)
        _replace(folded.backbone, norm, activation if isinstance(activation, nn.Module) else nn.Identity())
    with torch.inference_mode():
        difference = (folded.features(noise) - expected_ND).abs().max()
    return copy.deepcopy(network).eval() if difference > MAX_FOLDING_ERROR * expected_ND.abs().max() else folded


def _conv_norm_pairs(network: Network, images_NCHW: Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Return each convolution whose output goes into a batch norm, with that norm, and the features."""
    produced: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    alive: list[Tensor] = []  # the id of a freed tensor would be used again

    def after_conv(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        produced[id(output)] = layer
        alive.append(output)

    def before_norm(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        if (conv := produced.get(id(inputs[0]))) is not None:
            pairs.append((conv, layer))

    hooks = [m.register_forward_hook(after_conv) for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    hooks += [m.register_forward_pre_hook(before_norm) for m in norms]
    with torch.inference_mode():
        features_ND = network.features(images_NCHW)
    for hook in hooks:
        hook.remove()
    return pairs, features_ND


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for name, module in root.named_modules():
        if module is old:
            setattr(root.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], new)
            return
