"""What a network consists of: its layers by stage, which stages are trained, and how many parameters each unfreezing adds.

    network = describe("mobilenet_v2", classes=3, trained=["features.17", "features.18", "head"])
    network.trainable                       # parameters that training changes

Networks are built on torch's `meta` device, without weights: the largest takes a fraction of a second and no memory.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from edgeline.pipeline.models.backbones import Network, build, stages
from edgeline.pipeline.models.catalog import Backbone
from edgeline.pipeline.models.pretrained import LITE, load
from edgeline.serve.errors import ConfigError

Built = TypeVar("Built")

HEAD = "head"
"""Name of the stage that every network has besides those of its backbone: the new last layer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A module that has no modules of its own."""

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...]
    """Of its weight; empty without one."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A stage of a network."""

    name: str
    layers: tuple[Layer, ...]
    parameters: int
    trained: bool
    """Whether training changes it. A frozen stage keeps the statistics of its batch norms too."""
    trainable_from_here: int
    """Parameters that training changes once this stage and all those above it are unfrozen."""

    @property
    def kinds(self) -> str:
        """The kinds of layers and their numbers: `3 Conv2d, 3 BatchNorm2d`."""
        return ", ".join(f"{count} {kind}" for kind, count in Counter(layer.kind for layer in self.layers).most_common())


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """A network with a new head."""

    model: str
    size: int
    """Height and width of the input, in pixels."""
    stages: tuple[StageSummary, ...]
    """From the head, where unfreezing begins, to the input."""

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def trainable(self) -> int:
        """Parameters of the stages that are trained."""
        return sum(stage.parameters for stage in self.stages if stage.trained)


def describe(model: str, *, classes: int, trained: Collection[str] | None = None) -> NetworkSummary:
    """Describe a backbone with a new head.

    Args:
        model: a backbone's name.
        classes: outputs of the head.
        trained: names of the stages that training changes; None for all.

    Raises:
        ConfigError: there is no such model or stage.
    """
    network, spec = _without_memory(lambda: build(model, "none", classes=classes))
    summaries: list[StageSummary] = []
    total = 0
    names = [HEAD, *(stage.name for stage in reversed(stages(network.backbone)))]
    check_stages(model, names, trained or ())
    for name, modules, parameters in _parts(network):
        total += parameters
        summaries.append(
            StageSummary(
                name=name,
                layers=tuple(layer for prefix, module in modules for layer in _layers(prefix, module)),
                parameters=parameters,
                trained=trained is None or name in trained,
                trainable_from_here=total,
            )
        )
    return NetworkSummary(model, spec.height, tuple(summaries))


def check_stages(model: str, names: Collection[str], requested: Collection[str]) -> None:
    """Check that a network has stages of these names.

    Raises:
        ConfigError: it lacks some; the message has the nearest names.
    """
    if unknown := [name for name in requested if name not in names]:
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{model} has no stage {unknown[0]!r}{hint} (edgeline inspect {model} lists them)")


def measure(model: str) -> Backbone:
    """Compute the figures of any backbone, as the catalog has them for some.

    Raises:
        ConfigError: there is no such model.
    """
    pretrained = _without_memory(lambda: load(model, "none"))
    spec, module = pretrained.preprocess, pretrained.module.eval()
    return Backbone(
        name=model,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=multiply_adds(module, spec.height, spec.width),
        size=spec.height,
        file="" if model.startswith("timm:") else _torchvision_file(model),
        int8="not measured",
        why="",
        timm=_timm_weights(model.removeprefix("timm:")) if model.startswith("timm:") else None,
    )


def _without_memory(make: Callable[[], Built]) -> Built:
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:  # RegNets compute their widths with tensors
        return make()


def multiply_adds(module: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of the convolutions and linear layers for one image."""
    # Not with torch.utils.flop_counter, which imports Triton.
    counts: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
        counts.append(output.numel() * layer.weight[0].numel())

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(torch.zeros(1, 3, height, width, device=next(module.parameters()).device))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def _torchvision_file(model: str) -> str:
    from torchvision import models

    if model in LITE:
        return ""
    weights = models.get_model_weights(model).__members__.get("IMAGENET1K_V1")
    return str(weights.url.rpartition("/")[2]) if weights else ""


def _timm_weights(name: str) -> tuple[str, str]:
    """Licence of a timm network's weights, and whether they are on this machine."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        return "", "none"
    path = try_to_load_from_cache(config.hf_hub_id, "model.safetensors") if config.hf_hub_id else None
    return config.license or "not stated", "cached" if isinstance(path, str) else "downloaded on first use"


def _parts(network: Network) -> list[tuple[str, list[tuple[str, nn.Module]], int]]:
    """Name, named modules and number of parameters of each stage, from the head to the input."""
    paths = {module: path for path, module in network.backbone.named_modules()}
    head: list[tuple[str, nn.Module]] = [(HEAD, network.head)]
    parts = [(HEAD, head, sum(parameter.numel() for parameter in network.head.parameters()))]
    for stage in reversed(stages(network.backbone)):
        modules = [(paths[module], module) for module in stage.modules]
        parts.append((stage.name, modules, sum(parameter.numel() for parameter in stage.parameters())))
    return parts


def _layers(prefix: str, module: nn.Module) -> list[Layer]:
    found = []
    for path, layer in module.named_modules(prefix=prefix):
        parameters = list(layer.parameters(recurse=False))
        if parameters:
            weight = getattr(layer, "weight", None)
            shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()
            found.append(Layer(path, type(layer).__name__, sum(each.numel() for each in parameters), shape))
    return found
