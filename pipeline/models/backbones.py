"""Networks for training: a pretrained backbone with a new head.

    network, spec = build("efficientnet_lite0", "imagenet", classes=17, dropout=0.2)

Shapes: N images, C channels, H x W the model's input, D features, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgeline.pipeline.config import PreprocessConfig
from edgeline.pipeline.models.devices import keep_freed_memory
from edgeline.pipeline.models.pretrained import Normalization, load
from edgeline.pipeline.models.weights_file import LoadedWeights
from edgeline.serve.errors import ConfigError
from edgeline.serve.preprocess import PreprocessSpec


class Network(nn.Module):
    """A backbone without its classifier, and a new head: uint8 pixels to logits."""

    def __init__(self, backbone: nn.Module, features: int, classes: int, dropout: float, normalization: Normalization) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
        self.register_buffer("mean", torch.tensor(normalization.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(1, 3, 1, 1))
        self.mean: Tensor
        self.std: Tensor
        self.loaded: LoadedWeights | None = None
        """What of a local file the pretrained weights were loaded from, if they were."""

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Normalize pixels of 0 to 255 and run the backbone: float32 (N, D)."""
        features_ND: Tensor = self.backbone((images_NCHW - self.mean) / self.std)
        return features_ND

    def forward(self, pixels_NHW3: Tensor) -> Tensor:
        """Classify uint8 pixels (N, H, W, 3): logits, float32 (N, K)."""
        # The permuted bytes are already channels-last in memory, the fastest layout on CPUs and tensor cores.
        logits_NK: Tensor = self.head(self.features(pixels_NHW3.permute(0, 3, 1, 2).float()))
        return logits_NK

    @property
    def classifier(self) -> nn.Linear:
        """The last layer."""
        linear = self.head[1]
        assert isinstance(linear, nn.Linear)
        return linear


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a backbone that is frozen or trained as a whole."""

    name: str
    modules: list[nn.Module]
    own_parameters: list[nn.Parameter]
    """Parameters of the backbone itself that are in none of its modules, such as a transformer's class token."""

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters of the stage."""
        return [*self.own_parameters, *(parameter for module in self.modules for parameter in module.parameters())]

    def set_trainable(self, trainable: bool) -> None:
        """Unfreeze or freeze the stage: its weights, and the statistics of its batch norms."""
        for module in self.modules:
            module.train(trainable)
        for parameter in self.parameters():
            parameter.requires_grad_(trainable)


def build(
    model: str, weights: str, *, classes: int, dropout: float = 0.0, preprocess: PreprocessConfig | None = None
) -> tuple[Network, PreprocessSpec]:
    """Build a network with a new head on pretrained weights.

    Args:
        model: a backbone's name.
        weights: `imagenet`, `none` (random), one of torchvision's weight names, or a local file.
        classes: outputs of the new head. Its weights are zero, so that every class is equally likely at first.
        dropout: share of features dropped in training.
        preprocess: changes to the preprocessing that the weights were trained with.

    Returns:
        The network in evaluation mode and channels-last layout, and its preprocessing.

    Raises:
        ConfigError: there is no such model, it has no linear classifier, or it does not support the requested size.
        WeightsError: the weights are absent or do not fit.
    """
    keep_freed_memory()
    pretrained = load(model, weights)
    features = remove_classifier(pretrained.module, model)
    network = Network(pretrained.module, features, classes, dropout, pretrained.normalization)
    network.loaded = pretrained.loaded
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network = network.to(memory_format=torch.channels_last).eval()
    _check_features(network, pretrained.preprocess, model)
    if preprocess is None:
        return network, pretrained.preprocess
    return network, _change(pretrained.preprocess, preprocess, network, model)


def _change(spec: PreprocessSpec, requested: PreprocessConfig, network: Network, model: str) -> PreprocessSpec:
    changed = replace(
        spec,
        height=requested.size or spec.height,
        width=requested.size or spec.width,
        crop_fraction=requested.crop_fraction or spec.crop_fraction,
        interpolation=spec.interpolation if requested.interpolation == "own" else requested.interpolation,
        jpeg_decoding=requested.jpeg_decoding,
    )
    try:
        with torch.inference_mode():
            network.features(torch.full((1, 3, changed.height, changed.width), 127.0))
    except (RuntimeError, AssertionError) as error:  # of a transformer, which has one embedding for each patch
        raise ConfigError(
            f"preprocess.size = {requested.size}: {model} supports {spec.height}x{spec.width} only ({_one_line(error)}); "
            "remove the setting"
        ) from error
    return changed


def remove_classifier(module: nn.Module, model: str) -> int:
    """Remove a network's last linear layer and return its number of input features.

    Dropout next to it is disabled: the new head has its own.

    Raises:
        ConfigError: the network does not end in a linear layer.
    """
    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise _no_classifier(model)
    name, linear = linears[-1]
    parent = module.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.Identity())
    for layer in parent.modules() if parent is not module else []:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return linear.in_features


def _check_features(network: Network, spec: PreprocessSpec, model: str) -> None:
    """Run one gray image: in some networks the last linear layer is not the classifier, or one of two."""
    try:
        with torch.inference_mode():
            features_ND = network.features(torch.full((1, 3, spec.height, spec.width), 127.0))
    except RuntimeError as error:  # shapes that do not match
        raise _no_classifier(model, f" ({_one_line(error)})") from error
    if features_ND.shape != (1, network.classifier.in_features):
        raise _no_classifier(model)


def _no_classifier(model: str, reason: str = "") -> ConfigError:
    return ConfigError(
        f"model {model!r} does not end in a linear classifier that can be replaced{reason}; choose another model"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def stages(backbone: nn.Module) -> list[Stage]:
    """Return a backbone's freezable stages, from the input to the head. Each parameter is in exactly one.

    The blocks of top-level containers are stages of their own. A normalization layer belongs to the convolution before it.
    """
    found: list[Stage] = []
    for name, child in _blocks(backbone):
        if not list(child.parameters()):
            continue
        is_norm = not any(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in child.modules())
        if is_norm and found:
            found[-1].modules.append(child)
        else:
            found.append(Stage(name, [child], [] if found else list(backbone.parameters(recurse=False))))
    return found


def _blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in backbone.named_children():
        if isinstance(child, nn.Sequential) and len(child) > 1:
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child
