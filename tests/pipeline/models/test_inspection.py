"""The figures of the catalog are those of the networks, and a summary counts what training changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeline.pipeline.models.backbones import build, stages
from edgeline.pipeline.models.catalog import BACKBONES, Backbone
from edgeline.pipeline.models.inspection import describe, measure
from edgeline.serve.errors import ConfigError
from tests.support.cases import cases

NAMES = {each.name: each for each in BACKBONES}


@pytest.mark.parametrize("listed", cases(NAMES, quick=["mobilenet_v2", "efficientnet_lite0", "vgg16_bn"]))
def test_a_listed_backbone_has_the_parameters_multiply_adds_and_input_of_the_catalog(listed: Backbone) -> None:
    assert measure(listed.name) == replace(listed, int8="not measured", why="")


@pytest.mark.parametrize("name", cases({name: name for name in NAMES}, quick=["resnet18"]))
def test_a_listed_backbone_can_be_built_with_a_new_head_and_each_parameter_is_in_one_stage(name: str) -> None:
    summary = describe(name, classes=5)
    with torch.device("meta"):
        network, _ = build(name, "none", classes=5)
    assert summary.parameters == summary.trainable == sum(parameter.numel() for parameter in network.parameters())
    assert sum(layer.parameters for stage in summary.stages for layer in stage.layers) == summary.parameters
    assert [stage.name for stage in summary.stages] == ["head", *(stage.name for stage in reversed(stages(network.backbone)))]


def test_any_network_of_timm_and_torchvision_can_be_measured() -> None:
    assert measure("timm:test_efficientnet").parameters == 356_196
    assert measure("regnet_y_400mf").parameters == 4_344_144  # cannot be built without memory


def test_a_summary_counts_what_training_changes_before_and_after_each_unfreezing() -> None:
    summary = describe("mobilenet_v2", classes=3, trained=["head", "features.18"])
    head, top, below = summary.stages[:3]
    assert (head.parameters, top.parameters) == (3 * 1280 + 3, 320 * 1280 + 2 * 1280)
    assert summary.trainable == head.parameters + top.parameters
    assert [stage.trained for stage in summary.stages[:3]] == [True, True, False]
    assert below.trainable_from_here == head.parameters + top.parameters + below.parameters
    assert summary.stages[-1].trainable_from_here == summary.parameters
    assert top.kinds == "1 Conv2d, 1 BatchNorm2d"


def test_the_counts_are_those_of_freezing_the_stages_in_torch() -> None:
    network, _ = build("mobilenet_v3_small", "none", classes=2)
    for stage in stages(network.backbone):
        stage.set_trainable(stage.name == "features.12")
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert describe("mobilenet_v3_small", classes=2, trained=["head", "features.12"]).trainable == trainable


def test_an_unknown_stage_is_reported_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"no stage 'layer4.2'; did you mean layer4.1\?"):
        describe("resnet18", classes=2, trained=["layer4.2"])


def test_weights_in_the_cache_of_torch_are_found_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert NAMES["resnet18"].availability() == "downloaded on first use"
    path = Path(torch.hub.get_dir(), "checkpoints", NAMES["resnet18"].file)
    path.parent.mkdir(parents=True)
    path.touch()
    assert NAMES["resnet18"].availability() == "cached"
