from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from edgeline.pipeline.config import PreprocessConfig
from edgeline.pipeline.models.backbones import Network, build, remove_classifier, stages
from edgeline.serve.errors import ConfigError
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases

IMAGENET_MEAN, IMAGENET_STD = (255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225)


CHANGES = {
    "a smaller input": ({"size": 96}, {"height": 96, "width": 96}),
    "the whole picture": ({"crop_fraction": 1}, {"crop_fraction": 1}),
    "a different filter": ({"interpolation": "lanczos"}, {"interpolation": "lanczos"}),
    "full decoding": ({"jpeg_decoding": "full"}, {"jpeg_decoding": "full"}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize(("requested", "changed"), CHANGES.values(), ids=CHANGES)
def test_only_the_requested_preprocessing_changes(requested: dict[str, Any], changed: dict[str, Any]) -> None:
    own = build("mobilenet_v3_small", "none", classes=2)[1]
    assert build("mobilenet_v3_small", "none", classes=2, preprocess=PreprocessConfig(**requested))[1] == replace(
        own, **changed
    )


def test_a_size_that_the_network_does_not_support_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.size = 96: .* supports 224x224 only \(.+\); remove"):
        build("timm:deit_tiny_patch16_224", "none", classes=2, preprocess=PreprocessConfig(size=96))


def test_a_network_without_any_linear_layer_has_no_classifier() -> None:
    with pytest.raises(ConfigError, match="does not end in a linear classifier"):
        remove_classifier(nn.Sequential(nn.Conv2d(3, 4, 3)), "mine")


# Random weights: pretrained ones of these networks would have to be downloaded.
FAMILIES = {
    "mobilenet_v3_small": (1024, 14, ("features.0", "classifier.0")),
    "resnet18": (512, 9, ("conv1", "layer4.1")),
    "efficientnet_b0": (1280, 9, ("features.0", "features.8")),
    "shufflenet_v2_x0_5": (1024, 18, ("conv1.0", "conv5.0")),
    "alexnet": (4096, 7, ("features.0", "classifier.4")),
    "efficientnet_lite0": (1280, 9, ("conv_stem", "conv_head")),
    "timm:mobilenetv4_conv_small": (1280, 7, ("conv_stem", "conv_head")),
    "timm:convnext_atto": (320, 5, ("stem.0", "stages.3")),
    "timm:test_vit": (64, 7, ("patch_embed", "blocks.5")),
}


QUICK = ("mobilenet_v3_small", "resnet18", "efficientnet_lite0", "timm:test_vit")
NETWORKS = cases({name: name for name in FAMILIES}, quick=QUICK)


@cache
def random_network(model: str) -> tuple[Network, PreprocessSpec]:
    return build(model, "none", classes=3, dropout=0.3)


@pytest.mark.parametrize("model", NETWORKS)
def test_the_classifier_is_replaced_by_a_head_with_zero_weights(model: str) -> None:
    network, spec = random_network(model)
    pixels_NHW3 = torch.randint(0, 256, (2, spec.height, spec.width, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features_ND = network.features(pixels_NHW3.permute(0, 3, 1, 2).float())
        logits_NK = network(pixels_NHW3)
    assert features_ND.shape == (2, FAMILIES[model][0])
    assert torch.equal(logits_NK, torch.zeros(2, 3))
    assert not network.training
    assert {m.p for m in network.head.modules() if isinstance(m, nn.Dropout)} == {0.3}


@pytest.mark.parametrize("model", NETWORKS)
def test_every_parameter_is_in_one_stage_and_stages_are_ordered_from_the_input(model: str) -> None:
    backbone = random_network(model)[0].backbone
    found = stages(backbone)
    grouped = [id(parameter) for stage in found for parameter in stage.parameters()]
    order = {id(parameter): position for position, parameter in enumerate(backbone.parameters())}
    assert sorted(grouped) == sorted(order)
    starts = [min(order[id(p)] for p in stage.parameters()) for stage in found]
    assert starts == sorted(starts)
    assert (len(found), (found[0].name, found[-1].name)) == FAMILIES[model][1:]


def test_dropout_next_to_the_old_classifier_is_disabled() -> None:
    network, _ = random_network("efficientnet_b0")
    assert [m.p for m in network.backbone.classifier.modules() if isinstance(m, nn.Dropout)] == [0.0]


def test_a_network_on_bytes_has_the_logits_of_normalized_pixels(small: Network) -> None:
    nn.init.normal_(small.classifier.weight)
    pixels_NHW3 = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    with torch.inference_mode():
        expected_NK = small.head(small.backbone(((pixels_NHW3.double() - mean) / std).float().permute(0, 3, 1, 2)))
        largest = expected_NK.abs().max().item()
        assert largest > 0.1
        torch.testing.assert_close(small(pixels_NHW3), expected_NK, rtol=0, atol=1e-4 * largest)
