"""Files of weights as people have them (F14): other extensions, wrappings, whole models, damaged downloads."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.models.pretrained import load
from edgeline.pipeline.models.weights_file import load_weights_file
from edgeline.serve.errors import WeightsError


def network() -> nn.Module:
    """A small one with random weights: nine tensors, two of them its classifier's."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def write_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


NAMES: dict[str, Callable[[Any, Path], Any]] = {
    "model_best.pth.tar": torch.save,
    "epoch=9-step=100.ckpt": torch.save,
    "pytorch_model.bin": torch.save,
    "WEIGHTS.PTH": torch.save,
    "weights": torch.save,
    "old.pth": write_legacy,
    "old.safetensors": write_legacy,
    "model.bin": save_file,
    "model.pth": save_file,
}


@pytest.mark.parametrize(("name", "write"), NAMES.items(), ids=[f"F14-{name}" for name in NAMES])
def test_the_content_of_a_weights_file_decides_its_format(name: str, write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    given, target = network().state_dict(), network()
    write(given, tmp_path / name)
    loaded = load_weights_file(target, tmp_path / name)
    assert (loaded.matched, loaded.total, loaded.unused, loaded.container, loaded.prefix) == (9, 9, 0, "", "")
    assert all(torch.equal(tensor, given[key]) for key, tensor in target.state_dict().items())


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
# How the state dict is wrapped, the container and the prefix that are reported, and the text of the report.
WRAPPINGS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str, str, str]] = {
    "the ImageNet example of PyTorch": (
        lambda state: {"epoch": 9, "state_dict": prefixed("module.", state), "optimizer": OPTIMIZER},
        "state_dict",
        "module.",
        "9 of 9 tensors loaded, from its state_dict, without the prefix 'module.'",
    ),
    "Lightning": (
        lambda state: {"state_dict": prefixed("model.", state), "hyper_parameters": {"lr": 0.1}},
        "state_dict",
        "model.",
        "9 of 9 tensors loaded, from its state_dict, without the prefix 'model.'",
    ),
    "a compiled model": (
        lambda state: prefixed("_orig_mod.", state),
        "",
        "_orig_mod.",
        "9 of 9 tensors loaded, without the prefix '_orig_mod.'",
    ),
    "two prefixes and a foreign head": (
        lambda state: {"model": prefixed("module.backbone.", state) | {"module.head.weight": torch.ones(2)}},
        "model",
        "module.backbone.",
        "9 of 9 tensors loaded, from its model, without the prefix 'module.backbone.'",
    ),
    "an average of the weights next to the last ones": (
        lambda state: {"state_dict": network().state_dict(), "state_dict_ema": state},
        "state_dict_ema",
        "",
        "9 of 9 tensors loaded, from its state_dict_ema, which are averaged (EMA) and so preferred to state_dict",
    ),
    "values that are no tensors among them": (
        lambda state: {"model": {"name": "mine", **state}},
        "model",
        "",
        "9 of 9 tensors loaded, from its model",
    ),
    "a version of PyTorch that did not count batches": (
        lambda state: {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
        "",
        "",
        "8 of 9 tensors loaded",
    ),
}


@pytest.mark.parametrize(
    ("wrap", "container", "prefix", "text"), WRAPPINGS.values(), ids=[f"F14-{wrapping}" for wrapping in WRAPPINGS]
)
def test_a_wrapping_is_undone_and_reported(
    wrap: Callable[[dict[str, Tensor]], Any], container: str, prefix: str, text: str, tmp_path: Path
) -> None:
    given, target = network().state_dict(), network()
    torch.save(wrap(given), tmp_path / "w.ckpt")
    loaded = load_weights_file(target, tmp_path / "w.ckpt")
    assert (loaded.container, loaded.prefix) == (container, prefix)
    assert str(loaded) == f"weights {tmp_path / 'w.ckpt'}: {text}"
    assert all(torch.equal(tensor, given[key]) for key, tensor in target.state_dict().items() if "batches" not in key)


@pytest.mark.parametrize("key", ["model", "module"], ids=lambda key: f"F14-{key}")
def test_a_prefix_is_removed_only_if_the_tensors_match_then(key: str, tmp_path: Path) -> None:
    """The network has a submodule whose name is one of the usual wrappings."""
    target = nn.ModuleDict({key: nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 2)})
    given = nn.ModuleDict({key: nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 2)}).state_dict()
    torch.save(given, tmp_path / "w.pth")
    loaded = load_weights_file(target, tmp_path / "w.pth")
    assert (loaded.matched, loaded.container, loaded.prefix) == (4, "", "")


AMBIGUOUS = {
    "student and teacher": (
        lambda: {"student": network().state_dict(), "teacher": network().state_dict()},
        "contains 2 state dicts that fit: student, teacher; save the one to use",
    ),
    "two encoders": (
        lambda: {"model": prefixed("q.", network().state_dict()) | prefixed("k.", network().state_dict())},
        "contains 2 state dicts that fit: model with prefix k., model with prefix q.; save the one to use",
    ),
}


@pytest.mark.parametrize(("make", "message"), AMBIGUOUS.values(), ids=[f"F14-{case}" for case in AMBIGUOUS])
def test_of_two_state_dicts_that_fit_none_is_guessed(make: Callable[[], Any], message: str, tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights_file(network(), tmp_path / "w.pth")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def torch_bytes(value: Any, folder: Path, **options: Any) -> bytes:
    torch.save(value, folder / "made.pth", **options)
    return (folder / "made.pth").read_bytes()


def script_bytes(folder: Path) -> bytes:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "made.pt")
    return (folder / "made.pt").read_bytes()


DAMAGED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "an empty file": (lambda folder: b"", "is empty; download or copy it again"),
    "a pointer of Git LFS": (
        lambda folder: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a pointer of Git LFS, not the file that it stands for: run git lfs pull",
    ),
    "an error page": (lambda folder: b"\n<!DOCTYPE html><title>404</title>", "is a web page or XML, probably an error page"),
    "an error in JSON": (lambda folder: json.dumps({"error": "gone"}).encode(), 'it begins with b\'{"error"'),
    "half of a zip": (lambda folder: half(torch_bytes(network().state_dict(), folder)), "is incomplete: the end of its zip"),
    "half of a legacy file": (
        lambda folder: half(torch_bytes(network().state_dict(), folder, _use_new_zipfile_serialization=False)),
        r"is incomplete \(.*\); download or copy it again",
    ),
    "half of a safetensors file": (
        lambda folder: save(network().state_dict())[:-100],
        r"is incomplete: 1,068 of 1,168 bytes; download or copy it again",
    ),
    "half of the header of a safetensors file": (lambda folder: save(network().state_dict())[:60], "is incomplete: 60 of 608"),
    "another zip archive": (lambda folder: b"PK\x05\x06" + bytes(18), "is neither a safetensors file nor one of torch.save"),
    "gzip": (lambda folder: b"\x1f\x8b\x08\x00", "is compressed with gzip"),
    "TorchScript": (
        script_bytes,
        r"is a TorchScript program.*torch\.jit\.load\('w\.pth'\); torch\.save\(model\.state_dict\(\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), DAMAGED.values(), ids=[f"F14-{case}" for case in DAMAGED])
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_file_that_is_no_state_dict_is_named_for_what_it_is(
    make: Callable[[Path], bytes], message: str, tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(make(tmp_path))
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights_file(network(), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


OBJECTS: dict[str, tuple[Callable[[], Any], str]] = {
    "options of the command line": (
        lambda: {"state_dict": network().state_dict(), "hyper_parameters": argparse.Namespace(lr=0.1)},
        r"contains argparse\.Namespace besides tensors.*torch\.save\(checkpoint\['state_dict'\], 'weights\.pth'\)",
    ),
    "a whole model": (
        network,
        r"is a whole pickled model of class torch\.nn\.modules\.container\.Sequential.*"
        r"model = torch\.load\('w\.pth', weights_only=False\); torch\.save\(model\.state_dict\(\), 'weights\.pth'\)",
    ),
    "a whole model in a dict": (
        lambda: {"epoch": 9, "model": network()},
        r"contains torch\.nn\.modules\.container\.Sequential besides tensors.*checkpoint\['model'\]\.state_dict\(\)",
    ),
}


@pytest.mark.parametrize("write", [torch.save, write_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(("make", "message"), OBJECTS.values(), ids=[f"F14-{case}" for case in OBJECTS])
def test_objects_are_named_with_the_code_that_saves_the_tensors(
    write: Callable[[Any, Path], Any], make: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    write(make(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights_file(network(), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_the_code_in_the_message_for_a_whole_model_saves_weights_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F14: the two statements are run as they are printed."""
    torch.save(network(), tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights_file(network(), tmp_path / "w.pth")
    code = str(caught.value).rpartition("save the tensors: ")[2]
    monkeypatch.chdir(tmp_path)
    exec(code, {"torch": torch})
    assert load_weights_file(network(), tmp_path / "weights.pth").matched == 9


def test_what_was_loaded_is_available_where_the_network_is_trained(tmp_path: Path) -> None:
    """F14: the training step reads it from the network."""
    state = load("timm:test_efficientnet", "none").module.state_dict()
    torch.save({"state_dict": prefixed("module.", state)}, tmp_path / "best.pth.tar")
    built, _ = build("timm:test_efficientnet", str(tmp_path / "best.pth.tar"), classes=3)
    assert built.loaded is not None
    assert (built.loaded.matched, built.loaded.prefix) == (len(state), "module.")
    assert build("timm:test_efficientnet", "none", classes=3)[0].loaded is None
