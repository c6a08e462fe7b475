import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.cases import cases

# Lite0 has its trained weights; the others random ones, and statistics as after training.
WITH_NORMS = ("efficientnet_lite0", "mobilenet_v2", "resnet18", "timm:mobilenetv4_conv_small")
WITHOUT = ("alexnet", "timm:convnext_atto")


@pytest.mark.parametrize("model", cases({name: name for name in WITH_NORMS}, quick=["efficientnet_lite0"]))
def test_folded_batch_norms_give_the_same_features_and_leave_the_network_unchanged(model: str) -> None:
    network, _ = build(model, "imagenet" if model == "efficientnet_lite0" else "none", classes=2)
    if model != "efficientnet_lite0":
        disturb_statistics(network)
    spec = PreprocessSpec(height=96, width=96)
    state, structure = copy.deepcopy(network.state_dict()), repr(network)
    folded = fold_batch_norm(network, spec)
    images_NCHW = torch.rand(4, 3, 96, 96) * 255
    with torch.inference_mode():
        expected_ND, observed_ND = network.features(images_NCHW), folded.features(images_NCHW)
    assert not norms(folded)
    assert (observed_ND - expected_ND).abs().max() <= 1e-4 * expected_ND.abs().max()
    assert same_state(network, state)
    assert repr(network) == structure


@pytest.mark.parametrize("model", cases({name: name for name in WITHOUT}, quick=["timm:convnext_atto"]))
def test_a_network_without_batch_norms_is_unchanged(model: str) -> None:
    network, spec = build(model, "none", classes=2)
    folded = fold_batch_norm(network, spec)
    assert same_state(folded, network.state_dict())
    assert repr(folded) == repr(network)


def same_state(network: Network, state: dict[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def norms(network: Network) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def disturb_statistics(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.uniform_(norm.bias, -0.5, 0.5, generator=generator)


class SecondReader(nn.Module):
    """Its convolution's output goes into the norm and past it, as in pre-activation networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        found = self.conv(images_NCHW)
        return (found + self.norm(found)).mean((2, 3))


class InPlace(SecondReader):
    """Its convolution's output is rectified in place, so the norm gets the same tensor object."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.norm(functional.relu_(self.conv(images_NCHW))).mean((2, 3))


@pytest.mark.parametrize("backbone", [SecondReader, InPlace])
def test_a_norm_that_only_seems_to_follow_its_convolution_is_not_folded(backbone: type[SecondReader]) -> None:
    network = Network(backbone(), 4, 2, 0.0, Normalization((127.0,) * 3, (128.0,) * 3)).eval()
    disturb_statistics(network)
    folded = fold_batch_norm(network, PreprocessSpec(height=16, width=16))
    images_NCHW = torch.rand(2, 3, 16, 16) * 255
    with torch.inference_mode():
        assert torch.equal(folded.features(images_NCHW), network.features(images_NCHW))
