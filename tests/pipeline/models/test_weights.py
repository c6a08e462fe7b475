import hashlib
from pathlib import Path

import pytest

from edgeline.pipeline.models.weights import is_file, weights_identity
from edgeline.serve.errors import WeightsError

SETTINGS = {
    "imagenet": False,
    "none": False,
    "IMAGENET1K_V2": False,
    "weights/a.pth": True,
    "a.pt": True,
    "/b/c.safetensors": True,
    "model_best.pth.tar": True,
    "epoch=9.ckpt": True,
    "pytorch_model.bin": True,
    "A.PTH": True,
    "weights": True,
    "./IMAGENET1K_V2": True,
}


@pytest.mark.parametrize(("weights", "named"), SETTINGS.items(), ids=[f"F14-{setting}" for setting in SETTINGS])
def test_a_setting_is_a_file_unless_it_is_a_name_of_weights(weights: str, named: bool) -> None:
    assert is_file(weights) == named


def test_named_weights_are_identified_by_name_and_files_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"weights")
    (tmp_path / "b.safetensors").write_bytes(b"weights")
    assert weights_identity("imagenet") == "imagenet"
    digest = hashlib.sha256(b"weights").hexdigest()
    assert weights_identity(str(tmp_path / "a.pth")) == weights_identity(str(tmp_path / "b.safetensors")) == digest


@pytest.mark.parametrize("kind", ["nothing", "a folder"])
def test_a_file_that_cannot_be_read_is_rejected(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if kind == "a folder":
        path.mkdir()
    with pytest.raises(WeightsError, match=r"a\.pth: .*; use imagenet, none, or the path of an existing file"):
        weights_identity(str(path))
