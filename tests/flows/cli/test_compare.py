"""`edgeline diff`, on a finished run and the version that it published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.evaluation.answers import find_evaluated_run

Edgeline = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="artifacts")
def copied(finished: PipelineConfig, tmp_path: Path) -> Path:
    shutil.copytree(finished.artifacts, tmp_path / "artifacts", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "artifacts"


def test_a_published_version_is_compared_by_the_run_that_published_it(edgeline: Edgeline, artifacts: Path) -> None:
    [run] = (artifacts / "runs").glob("tints-*")
    code, out, err = edgeline("diff", str(run), str(artifacts / "store" / "tints"), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["first"], found["second"]) == (run.name, "tints version 1")
    assert (found["overall"]["images"], found["overall"]["lost"], found["overall"]["gained"]) == (8, 0, 0)
    code, out, _ = edgeline("diff", str(run), str(artifacts / "store" / "tints" / "1"))
    assert code == 0
    assert "8 images that both test\n" in out
    assert "Both are right and wrong on the same images." in out


def test_changed_answers_are_listed_with_the_image(edgeline: Edgeline, artifacts: Path) -> None:
    [run] = (artifacts / "runs").glob("tints-*")
    other = artifacts / "runs" / "tints-other"
    shutil.copytree(run, other)
    with np.load(other / "evaluate" / "test.npz") as saved:
        targets = saved["targets"]
    for folder, wrong in ((run, [0, 1, 2]), (other, [2, 3])):
        answers = targets.copy()
        answers[wrong] = 1 - answers[wrong]
        np.savez(folder / "evaluate" / "test.npz", probabilities=np.eye(2)[answers], targets=targets)
    code, out, _ = edgeline("diff", str(run), str(other))
    assert code == 0
    assert "+12.5 points can be chance: B is right on 2 images where A is wrong, and wrong on 1 where A is right." in out
    listed = out.splitlines()[-3:]
    assert sorted(line.split()[0] for line in listed) == ["gained", "gained", "lost"]
    assert all(".png: " in line and ", truly " in line for line in listed)


def test_a_version_without_its_run_is_named_with_what_to_do(edgeline: Edgeline, artifacts: Path) -> None:
    [run] = (artifacts / "runs").glob("tints-*")
    shutil.move(run, artifacts / "elsewhere")
    code, out, err = edgeline("diff", str(artifacts / "store" / "tints"), str(artifacts / "elsewhere"))
    assert (code, out) == (1, "")
    assert "tints version 1: the run that published it is not in" in err
    assert err.endswith("[run_missing]\n")


def test_of_runs_with_equal_weights_the_evaluated_one_is_compared(artifacts: Path) -> None:
    [run] = (artifacts / "runs").glob("tints-*")
    stopped = run.with_name("tints-000000000000")
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "evaluate")
    assert stopped < run
    _, found = find_evaluated_run(artifacts / "store" / "tints" / "1", artifacts)
    assert found.folder == run.resolve()
