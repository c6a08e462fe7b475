"""The command line as its users see it: one line for each error, exit codes, and no tracebacks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.flows import extras
from edgeline.flows.cli.main import app

Edgeline = Callable[..., tuple[int, str, str]]
MakePhotos = Callable[..., str]

INVALID = {
    "no such data": (["run", "--data", "nowhere"], "nowhere"),
    "an unknown setting": (["run", "--set", "train.epoch=5"], "did you mean train.epochs"),
    "two settings out of range": (["run", "--set", "train.epochs=-1", "--set", "verify.images=0"], "verify.images"),
    "an override without a value": (["run", "--set", "train.epochs"], "train.epochs=5"),
    "a missing configuration file": (["run", "--config", "edgeline.toml"], "edgeline.toml"),
    "an invalid name": (["run", "--name", "My Birds"], "lower-case"),
    "a folder that is not a run": (["train", "somewhere"], "edgeline prepare"),
    "a missing artifact to check": (["check", "artifacts/store/birds"], "no artifact"),
    "a missing artifact to predict": (["predict", "artifacts/store/birds", "x.jpg"], "no artifact"),
    "an unknown target to emulate": (
        ["emulate", "artifacts/store/birds", "--target", "arm32"],
        "arm64 or x86-avx2, got 'arm32'",
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), INVALID.values(), ids=INVALID)
def test_an_invalid_argument_is_reported_in_one_line(edgeline: Edgeline, arguments: list[str], expected: str) -> None:
    code, out, err = edgeline(*arguments, *(["--no-prefect"] if arguments[0] == "run" else []))
    assert (code, out) == (1, "")
    assert expected in err
    assert err.count("\n") == 1


def test_data_with_one_class_are_rejected_before_training(edgeline: Edgeline, make_photos: MakePhotos) -> None:
    code, _, err = edgeline("run", "--no-prefect", "--data", make_photos(ants=5))
    assert code == 1
    assert "[need_two_classes]" in err


def test_the_error_for_an_unknown_model_lists_known_ones(edgeline: Edgeline, make_photos: MakePhotos) -> None:
    code, _, err = edgeline("run", "--no-prefect", "--model", "resnet51", "--data", make_photos(ants=8, bees=8))
    assert code == 1
    assert "efficientnet_lite0" in err


UNPARSABLE = {
    "an unknown option": ["run", "--nonsense"],
    "verify without a run": ["verify"],
    "verify-onnx without a file": ["verify-onnx", "--data", "photos"],
    "verify-onnx without photos": ["verify-onnx", "model.onnx"],
    "emulate without a target": ["emulate", "artifacts/store/birds"],
}


@pytest.mark.parametrize("arguments", UNPARSABLE.values(), ids=UNPARSABLE)
def test_an_unparsable_command_line_exits_with_two(edgeline: Edgeline, arguments: list[str]) -> None:
    assert edgeline(*arguments)[0] == 2


@pytest.mark.parametrize(
    "command", sorted(str(command.name or command.callback.__name__) for command in app.registered_commands)
)
def test_each_command_has_help(edgeline: Edgeline, command: str) -> None:
    code, out, _ = edgeline(command, "--help")
    assert code == 0
    assert f" {command} [OPTIONS]" in out


def test_a_step_that_reads_a_missing_result_names_the_step_to_run_first(edgeline: Edgeline, make_photos: MakePhotos) -> None:
    code, out, err = edgeline("prepare", "--data", make_photos(ants=8, bees=8), "--json")
    assert code == 0, err
    run = json.loads(out)["run"]
    code, _, err = edgeline("verify", run)
    assert code == 1
    assert "edgeline train" in err


def test_prepare_reports_its_counts_as_json(edgeline: Edgeline, make_photos: MakePhotos) -> None:
    data = make_photos(ants=8, bees=8)
    Path(data, "bees", "broken.jpg").write_bytes(b"")
    code, out, _ = edgeline("prepare", "--data", data, "--json")
    report = json.loads(out)["report"]
    assert code == 0
    assert (report["kept"], report["rejected"]) == (16, 1)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    edgeline: Edgeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)  # as if the package were not installed
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydantic" or name.startswith("edgeline.pipeline")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "yaml", None)
    code, _, err = edgeline("prepare", "--data", str(tmp_path))
    assert code == 1
    assert "pip install 'edgeline[train]'" in err
