import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.checkpoint import SETTINGS, Checkpoint, load_checkpoint, read_settings, save_checkpoint
from edgeline.pipeline.models.weights import TENSORS
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import TrainingError
from edgeline.serve.preprocess import PreprocessSpec

CHECKPOINT = Checkpoint(
    model="mobilenet_v3_small",
    weights="none",
    labels=("disc", "frame", "stripes"),
    preprocess=PreprocessSpec(height=32, width=32, crop_fraction=0.9),
    dropout=0.2,
    strategy="head",
    seed=7,
    device="CPU, 2 threads",
    history=({"train_loss": 0.7, "val_loss": 0.6, "val_accuracy": 0.5},),
    best_epoch=1,
    versions={"torch": "2.15.0"},
)


@pytest.fixture(name="folder")
def a_checkpoint(small: Network, tmp_path: Path) -> Path:
    nn.init.normal_(small.classifier.weight)
    small.mean.add_(1)  # the normalization is saved too
    folder = tmp_path / "train"
    folder.mkdir()
    save_checkpoint(folder, small, CHECKPOINT)
    return folder


def test_a_loaded_checkpoint_equals_the_saved_one(folder: Path, small: Network) -> None:
    network, checkpoint = load_checkpoint(folder)
    assert checkpoint == CHECKPOINT
    nn.init.normal_(small.classifier.weight)  # later changes to the network do not matter
    again, _ = load_checkpoint(folder)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))
    assert not any(module.training for module in network.modules())


def test_a_loaded_network_has_the_same_logits_bit_for_bit(small: Network, tmp_path: Path) -> None:
    nn.init.normal_(small.classifier.weight)
    small.std.mul_(1.5)
    save_checkpoint(tmp_path, small, CHECKPOINT)
    pixels_NHW3 = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected_NK, observed_NK = small(pixels_NHW3), load_checkpoint(tmp_path)[0](pixels_NHW3)
    assert expected_NK.abs().max() > 0
    assert torch.equal(observed_NK, expected_NK)


def test_no_file_of_a_train_step_is_a_pickle(trained_run: Run) -> None:
    for path in trained_run.step("train").iterdir():
        data = path.read_bytes()
        assert path.suffix in (".json", ".safetensors", ".npz")
        assert not data.startswith(b"\x80")
        assert b"data.pkl" not in data


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        settings = json.loads((folder / SETTINGS).read_text())
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (settings[section] if section else settings)[name] = value
        (folder / SETTINGS).write_text(json.dumps(settings))

    return edit


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def of_another_network(folder: Path) -> None:
    save_checkpoint(folder, build("shufflenet_v2_x0_5", "none", classes=3)[0], CHECKPOINT)


class Hostile:
    """Its pickle creates a folder when loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_from_before_scaled_decoding_is_loaded_with_full_decoding(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    del settings["preprocess"]["jpeg_decoding"]
    settings["preprocess_sha256"] = "f446b6daa57472d52f7bdc49ca8b06f94faeaedff03a8cae0721d00185ed4e14"  # of that version
    (folder / SETTINGS).write_text(json.dumps(settings))
    assert read_settings(folder) == replace(CHECKPOINT, preprocess=replace(CHECKPOINT.preprocess, jpeg_decoding="full"))


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another way of decoding": (edited(preprocess__jpeg_decoding="full"), "is not the one that the network was trained with"),
    "another crop": (edited(preprocess__crop_fraction=0.875), "is not the one that the network was trained with"),
    "another resolution": (edited(preprocess__height=64), "is not the one that the network was trained with"),
    "an impossible crop": (
        edited(preprocess__crop_fraction=5),
        "has no valid checkpoint .*crop_fraction must be 0.1 to 1",
    ),
    "an unknown field": (edited(color="red"), "has no valid checkpoint .*color"),
    "settings that are a list": (lambda f: (f / SETTINGS).write_text("[]"), "has no valid checkpoint"),
    "half the settings": (lambda f: (f / SETTINGS).write_text('{"model": "mob'), "has no valid checkpoint"),
    "no settings": (lambda f: (f / SETTINGS).unlink(), "has no valid checkpoint .*train again"),
    "no folder": (shutil.rmtree, "has no valid checkpoint"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "does not fit mobilenet_v3_small: "),
    "cut tensors": (lambda f: shortened(f / TENSORS), "does not fit mobilenet_v3_small: "),
    "the tensors of another network": (of_another_network, "does not fit mobilenet_v3_small: .*Missing key"),
    "a class less": (edited(labels=["disc", "frame"]), "does not fit mobilenet_v3_small: .*head.1.weight"),
    "another model": (edited(model="shufflenet_v2_x0_5"), "does not fit shufflenet_v2_x0_5: "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint_is_rejected(damage: Callable[[Path], object], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(TrainingError, match=message) as caught:
        load_checkpoint(folder)
    assert caught.value.code == "checkpoint_mismatch"
    assert str(folder) in str(caught.value)


def test_code_in_place_of_the_tensors_does_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / TENSORS).write_bytes(pickle.dumps(Hostile(tmp_path / "it-ran")))
    with pytest.raises(TrainingError, match="does not fit"):
        load_checkpoint(folder)
    assert not (tmp_path / "it-ran").exists()


def test_the_settings_are_read_without_the_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()
    assert read_settings(folder) == replace(CHECKPOINT)
