"""Training from Python: results, errors, and packages that it does not need."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgeline
from edgeline.flows import extras, steps
from edgeline.flows.fit import Accuracy, FitResult
from edgeline.pipeline.config import PipelineConfig
from edgeline.serve.errors import ConfigError, DataError, MissingExtraError

INVALID: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a missing folder": ({"data": "nowhere"}, DataError, "nowhere"),
    "data that are not a path": ({"data": 3}, ConfigError, "data: "),
    "an unknown setting": ({"settings": {"train.epoch": 5}}, ConfigError, "did you mean train.epochs"),
    "an unknown option": ({"colour": "red"}, ConfigError, "unknown setting colour"),
    "a value out of range": ({"settings": {"train.epochs": -1}}, ConfigError, "train.epochs: "),
    "a value of the wrong type": ({"train": {"epochs": "many"}}, ConfigError, "train.epochs: "),
    "an unknown strategy": ({"strategy": "magic"}, ConfigError, "train.strategy: "),
    "an invalid name": ({"name": "My Birds"}, ConfigError, "lower-case"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), INVALID.values(), ids=INVALID)
def test_invalid_arguments_raise_the_errors_of_the_command_line(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        edgeline.fit(**{"data": "digits", "artifacts": tmp_path, **arguments})


def test_settings_options_and_sections_make_one_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[PipelineConfig] = []

    def run_pipeline(config: PipelineConfig, **_: Any) -> Any:
        seen.append(config)
        return None, []

    monkeypatch.setattr(steps, "run_pipeline", run_pipeline)
    edgeline.fit(
        tmp_path / "photos",
        name="birds",
        model="mobilenet_v2",
        settings={"train.epochs": 5, "export.variants": ["onnx-int8"]},
        strategy="full",
        seed=7,
        evaluate={"bins": 10},
        artifacts=tmp_path,
    )
    [config] = seen
    assert (config.data, config.name, config.model, config.seed) == (str(tmp_path / "photos"), "birds", "mobilenet_v2", 7)
    assert (config.train.epochs, config.train.strategy, config.evaluate.bins) == (5, "full", 10)
    assert (config.export.variants, config.artifacts) == (("onnx-int8",), str(tmp_path))


@pytest.fixture
def result(finished: PipelineConfig) -> FitResult:
    """What `fit` returns for the run that these tests share: every step is reused."""
    settings = finished.model_dump(mode="json", exclude_defaults=True)
    return edgeline.fit(settings.pop("data"), **settings)


@pytest.mark.slow
def test_the_result_has_the_accuracy_the_artifact_and_the_classifier(result: FitResult, finished: PipelineConfig) -> None:
    assert result.run.config == finished
    assert [step.name for step in result.steps] == list(steps.STEP_NAMES)
    assert all(step.reused for step in result.steps)
    assert result.artifact == finished.store / "tints" / "1"
    assert result.accuracy.low <= float(result.accuracy) <= result.accuracy.high
    assert result.accuracy.correct / result.accuracy.total == pytest.approx(result.accuracy.value)
    image = next(iter(Path(finished.data, "warm").iterdir())).read_bytes()
    [[best]] = result.classifier.predict([image], top_k=1)
    assert best.label in ("warm", "cold")
    assert result.classifier is result.classifier


@pytest.mark.slow
def test_the_result_shows_its_summary_as_text_and_as_html(result: FitResult) -> None:
    assert repr(result).splitlines()[0] == "artifact              tints version 1"
    assert f"{result.accuracy.value:.2%}, 95 % interval" in repr(result)
    page = result._repr_html_()
    assert page.startswith("<table>")
    assert '<td style="text-align: left">tints version 1</td>' in page


def test_an_accuracy_prints_as_percentages_with_its_interval() -> None:
    accuracy = Accuracy(value=0.975, low=0.87, high=0.996, correct=39, total=40)
    assert str(accuracy) == "97.50% (95 % interval 87.00% to 99.60%)"


PROGRAM = """
import sys
sys.modules["prefect"] = None
import edgeline
try:
    edgeline.fit("nowhere", artifacts=sys.argv[1])
except edgeline.serve.errors.DataError as error:
    print(error.code)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "onnx", "typer"}))
"""


def test_fit_needs_no_prefect_and_fails_before_importing_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["data_missing", "[]"]
    assert done.stderr == ""


def test_a_missing_extra_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)

    def configure(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    monkeypatch.setattr("edgeline.flows.fit._configure", configure)
    with pytest.raises(MissingExtraError) as caught:
        edgeline.fit("digits", artifacts=tmp_path)
    assert str(caught.value) == "this needs the package 'pydantic': pip install 'edgeline[export]'"


def test_progress_is_printed_in_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photos: Path, tmp_path: Path
) -> None:
    def prepare_only(config: PipelineConfig, *, call_prepare: Any, call_step: Any) -> Any:
        run, result = call_prepare(config)
        return run, [result]

    monkeypatch.setattr(steps, "run_pipeline", prepare_only)
    edgeline.fit(photos, artifacts=tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # makes rich treat standard error as a terminal
    edgeline.fit(photos, artifacts=tmp_path)
    err = capsys.readouterr().err
    assert "prepare" in err
    assert " reused\n" in err
