"""The command line as its users meet it: one line for what went wrong, exit codes, and no tracebacks."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeline.flows.cli import main as cli

Edgeline = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="edgeline")
def _edgeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Edgeline:
    """Run a command line in a folder of its own; gives (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeline", *arguments])
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return run


def folder(tmp_path: Path, **classes: int) -> str:
    """A folder of class folders with that many different images each."""
    for label, count in classes.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(count):
            color = (hash(label) % 200, 5 * index, 80)
            Image.new("RGB", (20, 16), color).save(tmp_path / "photos" / label / f"{index}.png")
    return str(tmp_path / "photos")


REFUSED = {
    "no such data": (["run", "--data", "nowhere"], "nowhere"),
    "an unknown setting": (["run", "--set", "train.epoch=5"], "did you mean epochs"),
    "two settings out of range": (["run", "--set", "train.epochs=-1", "--set", "verify.images=0"], "verify.images"),
    "an override without a value": (["run", "--set", "train.epochs"], "train.epochs=5"),
    "a config that is not there": (["run", "--config", "edgeline.toml"], "edgeline.toml"),
    "a name that is no name": (["run", "--name", "My Birds"], "lower-case"),
    "a run that is no run": (["train", "somewhere"], "edgeline prepare"),
    "an artifact that is not there": (["check", "artifacts/store/birds"], "no artifact"),
    "a file and a run to verify": (["verify", "run", "--onnx", "model.onnx"], "leave out RUN"),
    "a file to verify on another machine": (["verify", "--onnx", "m.onnx", "--target", "arm64"], "leave out RUN and --target"),
    "a file to verify without photos": (["verify", "--onnx", "model.onnx"], "--data"),
    "a file to verify that is not there": (["verify", "--onnx", "model.onnx", "--data", "."], "no such file"),
    "a mean of two numbers": (["verify", "--onnx", "m.onnx", "--data", ".", "--mean", "0.5,0.4"], "three with commas"),
    "a deviation of nothing": (["verify", "--onnx", "m.onnx", "--data", ".", "--std", "0"], "--std must be"),
    "a size that is none": (["verify", "--onnx", "m.onnx", "--data", ".", "--size", "big"], "--size must be"),
    "photos for a run": (["verify", "run", "--data", "photos"], "belongs to --onnx"),
    "an artifact that is not there, to predict": (["predict", "artifacts/store/birds", "x.jpg"], "no artifact"),
}


@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_gets_one_line_that_says_what_to_do(edgeline: Edgeline, arguments: list[str], says: str) -> None:
    code, out, err = edgeline(*arguments, *(["--no-prefect"] if arguments[0] == "run" else []))
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


def test_one_class_only_is_refused_before_any_training(edgeline: Edgeline, tmp_path: Path) -> None:
    code, _, err = edgeline("run", "--no-prefect", "--data", folder(tmp_path, ants=5))
    assert code == 1
    assert "[need_two_classes]" in err


def test_an_unknown_model_is_refused_with_the_ones_there_are(edgeline: Edgeline, tmp_path: Path) -> None:
    code, _, err = edgeline("run", "--no-prefect", "--model", "resnet51", "--data", folder(tmp_path, ants=8, bees=8))
    assert code == 1
    assert "efficientnet_lite0" in err


def test_a_command_line_that_makes_no_sense_exits_with_two(edgeline: Edgeline) -> None:
    assert edgeline("run", "--nonsense")[0] == 2
    assert edgeline("verify")[0] == 2


@pytest.fixture
def own_file(tmp_path: Path, artifact_template: Path) -> Path:
    """An ONNX classifier of somebody, beside two photos and a text."""
    folder(tmp_path, red=1, blue=1)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    shutil.copyfile(artifact_template / "model.onnx", tmp_path / "own.onnx")
    return tmp_path / "own.onnx"


def test_a_file_from_elsewhere_is_judged_and_the_report_printed(edgeline: Edgeline, own_file: Path) -> None:
    code, out, err = edgeline("verify", "--onnx", str(own_file), "--data", "photos", "--against", str(own_file))
    assert (code, err) == (0, "")
    assert "own.onnx: ONNX, float32, takes uint8 [batch, 12, 16, 3]" in out
    assert "1 files cannot be read and are left out (notes.txt: " in out
    assert "same best class 100.00%" in out
    assert out.endswith("passed\n")


def test_a_file_that_does_not_hold_exits_with_one_and_its_report(edgeline: Edgeline, own_file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(own_file)
    [bias] = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 1, 2], np.float32), "bias"))
    onnx.save(model, tmp_path / "wrong.onnx")
    command = ("verify", "--onnx", "wrong.onnx", "--data", "photos", "--against", str(own_file))
    code, out, err = edgeline(*command)
    assert code == 1
    assert out.endswith("failed\n")
    assert "wrong.onnx does not hold: batch 1: the probabilities of" in err
    assert err.count("\n") == 1
    code, out, err = edgeline(*command, "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert not report["passed"]
    assert report["images"]["photos"] == 2


def test_a_step_before_its_time_says_which_step_comes_first(edgeline: Edgeline, tmp_path: Path) -> None:
    code, out, err = edgeline("prepare", "--data", folder(tmp_path, ants=8, bees=8), "--json")
    assert code == 0, err
    run = json.loads(out)["run"]
    code, _, err = edgeline("verify", run)
    assert code == 1
    assert "edgeline train" in err


def test_prepare_reports_what_it_found_as_json(edgeline: Edgeline, tmp_path: Path) -> None:
    data = folder(tmp_path, ants=8, bees=8)
    Path(data, "bees", "broken.jpg").write_bytes(b"")
    code, out, _ = edgeline("prepare", "--data", data, "--json")
    report = json.loads(out)["report"]
    assert code == 0
    assert (report["kept"], report["rejected"]) == (16, 1)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    edgeline: Edgeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)  # as where the package is not installed
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pydantic", "pipeline")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, _, err = edgeline("prepare", "--data", str(tmp_path))
    assert code == 1
    assert "pip install 'edgeline[train]'" in err
