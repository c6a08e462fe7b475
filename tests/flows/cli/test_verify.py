"""`edgeline verify`, whose former options have moved, and `edgeline verify-onnx`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Edgeline = Callable[..., tuple[int, str, str]]

MOVED = {
    "a file": (["--onnx", "model.onnx", "--data", "photos"], "edgeline verify --onnx is now", "edgeline verify-onnx FILE"),
    "a file after a run": (["run", "--onnx=model.onnx"], "edgeline verify --onnx is now", "edgeline verify-onnx FILE"),
    "photos for a run": (["run", "--data", "photos"], "edgeline verify --data is now", "edgeline verify-onnx FILE --data DIR"),
    "another processor": (["artifact", "--target", "arm64"], "edgeline verify --target is now", "edgeline emulate ARTIFACT"),
    "a cache folder": (["artifact", "--artifacts", "cache"], "edgeline verify --artifacts is now", "edgeline emulate ARTIFACT"),
}


@pytest.mark.parametrize(("arguments", "expected", "command"), MOVED.values(), ids=MOVED)
def test_an_option_that_has_moved_names_the_new_command_in_one_line(
    edgeline: Edgeline, arguments: list[str], expected: str, command: str
) -> None:
    code, out, err = edgeline("verify", *arguments)
    assert (code, out) == (1, "")
    assert expected in err
    assert command in err
    assert err.count("\n") == 1


INVALID = {
    "a missing file": (["model.onnx", "--data", "."], "no such file"),
    "a mean of two numbers": (["m.onnx", "--data", ".", "--mean", "0.5,0.4"], "three with commas"),
    "a standard deviation of 0": (["m.onnx", "--data", ".", "--std", "0"], "--std must be"),
    "a size that is not a number": (["m.onnx", "--data", ".", "--size", "big"], "--size must be"),
}


@pytest.mark.parametrize(("arguments", "expected"), INVALID.values(), ids=INVALID)
def test_an_invalid_option_of_verify_onnx_is_reported_in_one_line(
    edgeline: Edgeline, arguments: list[str], expected: str
) -> None:
    code, out, err = edgeline("verify-onnx", *arguments)
    assert (code, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1


@pytest.fixture
def own_file(tmp_path: Path, make_photos: Callable[..., str], artifact_template: Path) -> Path:
    """A third-party ONNX classifier, next to a folder with two photos and a text file."""
    make_photos(red=1, blue=1)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    shutil.copyfile(artifact_template / "model.onnx", tmp_path / "own.onnx")
    return tmp_path / "own.onnx"


def test_verify_onnx_prints_its_report(edgeline: Edgeline, own_file: Path) -> None:
    code, out, err = edgeline("verify-onnx", str(own_file), "--data", "photos", "--against", str(own_file))
    assert (code, err) == (0, "")
    assert "own.onnx: ONNX, float32, input uint8 [batch, 12, 16, 3]" in out
    assert "1 files cannot be read and are left out (notes.txt: " in out
    assert "top-1 agreement 100.00%" in out
    assert out.endswith("passed\n")


def test_verify_onnx_exits_with_one_and_prints_its_report_if_a_check_fails(
    edgeline: Edgeline, own_file: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(own_file)
    [bias] = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 1, 2], np.float32), "bias"))
    onnx.save(model, tmp_path / "wrong.onnx")
    command = ("verify-onnx", "wrong.onnx", "--data", "photos", "--against", str(own_file))
    code, out, err = edgeline(*command)
    assert code == 1
    assert out.endswith("failed\n")
    assert "wrong.onnx failed: batch 1: the probabilities of" in err
    assert err.count("\n") == 1
    code, out, err = edgeline(*command, "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert not report["passed"]
    assert report["images"]["photos"] == 2
