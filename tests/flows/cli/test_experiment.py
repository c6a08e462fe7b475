"""`edgeline experiment` and `edgeline runs`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.config import PipelineConfig, load_config

Edgeline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(finished: PipelineConfig, tmp_path: Path) -> PipelineConfig:
    """The configuration of a finished run, in artifacts of its own."""
    shutil.copytree(finished.artifacts, tmp_path / "artifacts")
    return finished.model_copy(update={"artifacts": str(tmp_path / "artifacts")})


def arguments(config: PipelineConfig) -> list[str]:
    tiny = ["--set", "preprocess.size=32", "--set", "publish.golden=2", "--set", "export.variants=[]"]
    own = ["--data", config.data, "--artifacts", config.artifacts, "--models", config.model, "--weights", "none"]
    return [*own, "--strategies", config.train.strategy, *tiny]


def test_the_command_prints_one_table_and_writes_the_page(edgeline: Edgeline, config: PipelineConfig) -> None:
    code, out, err = edgeline("experiment", *arguments(config), "--set", "train.epochs=3")
    assert code == 0, err
    assert "1/1 as configured, seed 0: reused" in err
    assert "1 of 1 runs finished on the same" in out
    assert "publish the most accurate: edgeline run" in out
    [folder] = (Path(config.artifacts) / "experiments").iterdir()
    assert {path.name for path in folder.iterdir()} >= {"experiment.html", "experiment.json", "cells.csv", "accuracy.png"}


@pytest.mark.long
def test_the_command_fails_with_one_line_after_writing_what_it_has(edgeline: Edgeline, config: PipelineConfig) -> None:
    code, out, err = edgeline(
        "experiment", *arguments(config), "--set", "train.epochs=3", "--set", "prepare.min_per_class=3,50"
    )
    assert code == 1
    assert "min_per_class 50" in out
    assert "failed" in out
    assert "1 of 2 cells failed" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("[cells_failed]")


@pytest.mark.long
def test_find_rate_draws_the_loss_of_a_run_and_prints_what_to_type_next(edgeline: Edgeline, config: PipelineConfig) -> None:
    [run] = (Path(config.artifacts) / "runs").iterdir()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out, err = edgeline("find-rate", str(run), "--strategy", "full", "--steps", "20", "--set", "train.batch_size=4")
    assert code == 0, err
    assert "suggested learning rate for full: " in out
    following = out.splitlines()[-1]
    assert following.startswith("next: edgeline run --config ")
    config_file = Path(following.split()[4])
    suggested = float(following.rpartition("train.learning_rate=")[2])
    curve = json.loads((config_file.parent / "learning_rate" / "learning_rate.json").read_text())
    assert curve["strategy"] == "full"
    assert suggested == pytest.approx(curve["suggested"], rel=0.06)
    assert (config_file.parent / "learning_rate" / "learning_rate.png").stat().st_size > 5000
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert load_config(config_file).train.batch_size == 4


def test_find_rate_needs_one_source_of_data_and_a_strategy_that_trains_layers(
    edgeline: Edgeline, config: PipelineConfig
) -> None:
    [run] = (Path(config.artifacts) / "runs").iterdir()
    code, _, err = edgeline("find-rate", str(run), "--data", config.data)
    assert code == 1
    assert "RUN and --data both give the data; use one of them" in err
    code, _, err = edgeline("find-rate", str(run), "--strategy", "head")
    assert code == 1
    assert "strategy=head has no learning rate that is found this way" in err
    assert "not a run folder" in edgeline("find-rate", str(run.parent))[2]


def test_runs_lists_filters_and_exports_the_log(edgeline: Edgeline, config: PipelineConfig, tmp_path: Path) -> None:
    code, out, _ = edgeline("runs", "--artifacts", config.artifacts, "--where", "train.epochs=3")
    assert code == 0
    assert "1 runs" in out
    assert "tints" in out
    assert edgeline("runs", "--artifacts", config.artifacts, "--where", "accuracy<0", "--export", "runs.json")[0] == 0
    assert (tmp_path / "runs.json").read_text() == "[]\n"
    assert edgeline("runs", "--artifacts", config.artifacts, "--export", "runs.csv")[0] == 0
    assert (tmp_path / "runs.csv").read_text().count("\n") == 2
    assert "did you mean accuracy?" in edgeline("runs", "--artifacts", config.artifacts, "--sort", "acuracy")[2]
    assert "did you mean model?" in edgeline("runs", "--artifacts", config.artifacts, "--columns", "run,modle")[2]
    assert "end in .csv or .json" in edgeline("runs", "--artifacts", config.artifacts, "--export", "runs.txt")[2]
