"""`edgeline experiment` and `edgeline runs`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.config import PipelineConfig

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


def test_the_command_fails_with_one_line_after_writing_what_it_has(edgeline: Edgeline, config: PipelineConfig) -> None:
    code, out, err = edgeline(
        "experiment", *arguments(config), "--set", "train.epochs=3", "--set", "prepare.min_per_class=3,50"
    )
    assert code == 1
    assert "min_per_class 50" in out
    assert "failed" in out
    assert "1 of 2 cells failed" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("[cells_failed]")


def test_runs_lists_filters_and_exports_the_log(edgeline: Edgeline, config: PipelineConfig, tmp_path: Path) -> None:
    code, out, _ = edgeline("runs", "--artifacts", config.artifacts, "--where", "train.epochs=3")
    assert code == 0
    assert "1 runs" in out
    assert "tints" in out
    assert edgeline("runs", "--artifacts", config.artifacts, "--where", "accuracy<0", "--export", "runs.json")[0] == 0
    assert (tmp_path / "runs.json").read_text() == "[]\n"
    assert edgeline("runs", "--artifacts", config.artifacts, "--export", "runs.csv")[0] == 0
    assert (tmp_path / "runs.csv").read_text().count("\n") == 2
    assert "end in .csv or .json" in edgeline("runs", "--artifacts", config.artifacts, "--export", "runs.txt")[2]
