"""Pruning removes what is old, and nothing that is needed."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.export.promotion.channels import Change, promote, record_kept, yank
from edgeline.flows.operations.prune import RECENT_S, plan_prune, prune
from edgeline.serve.artifact.reader import resolve, versions

EDGELINE = str(Path(sys.executable).with_name("edgeline"))


@pytest.fixture(name="artifacts")
def with_versions(make_artifact: Callable[..., Path], tmp_path: Path) -> Path:
    """An artifacts folder with versions 1 to 6 of `colors`, and six runs that are two days old."""
    folder = tmp_path / "artifacts"
    for version in range(1, 7):
        make_artifact(store=folder / "store", version=version, provenance={"checkpoint_sha256": f"{version}" * 64})
    for number in range(1, 7):
        run = folder / "runs" / f"colors-{number:012}"
        (run / "train").mkdir(parents=True)
        (run / "config.json").write_text("{}")
        files = {"checkpoint.safetensors": {"size": 0, "sha256": f"{number}" * 64}}
        (run / "train" / "receipt.json").write_text(json.dumps({"key": "", "files": files}))
        age(run, 2 * RECENT_S - number)
    return folder


def age(run: Path, seconds: float) -> None:
    for path in (*run.iterdir(), run):
        os.utime(path, (time.time() - seconds,) * 2)


def planned(artifacts: Path, keep: int = 2) -> tuple[list[str], list[str]]:
    plan = plan_prune(artifacts, keep)
    return [entry.path.name for entry in plan.versions], [entry.path.name[-1] for entry in plan.runs]


def test_the_newest_versions_and_the_runs_that_published_them_stay(artifacts: Path) -> None:
    assert planned(artifacts) == (["1", "2", "3", "4"], ["1", "2", "3", "4"])
    assert planned(artifacts, keep=9) == ([], [])


def test_a_version_that_a_channel_has_or_had_stays_with_its_run(artifacts: Path) -> None:
    folder = artifacts / "store" / "colors"
    for version, channel in ((1, "stable"), (3, "stable"), (2, "canary")):
        promote(folder, version, Change(channel, why=""))
    record_kept(folder, 4, Change("stable", why="worse"))
    assert planned(artifacts) == (["4"], ["4"])


def test_if_newer_versions_were_yanked_the_one_in_use_stays(artifacts: Path) -> None:
    folder = artifacts / "store" / "colors"
    for version in (6, 5, 4):
        yank(folder, version, "bad")
    assert resolve(folder).name == "3"
    assert planned(artifacts, keep=1)[0] == ["1", "2", "4", "5"]


def test_a_run_that_is_recent_or_held_by_a_process_stays(artifacts: Path) -> None:
    runs = artifacts / "runs"
    os.utime(runs / "colors-000000000001" / "train")
    lock = runs / "colors-000000000002" / ".export.lock"
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        age(lock.parent, 2 * RECENT_S)
        assert planned(artifacts)[1] == ["3", "4"]
    assert planned(artifacts)[1] == ["2", "3", "4"]


def test_a_version_whose_splits_a_kept_one_keeps_stays(artifacts: Path, make_artifact: Callable[..., Path]) -> None:
    for version, older in ((7, 4), (4, 2)):
        shutil.rmtree(artifacts / "store" / "colors" / str(version), ignore_errors=True)
        provenance = {"config": {"prepare": {"keep_splits": older}}}
        make_artifact(store=artifacts / "store", version=version, provenance=provenance)
    assert planned(artifacts, keep=1)[0] == ["1", "3", "5", "6"]


def test_runs_of_an_experiment_and_teachers_of_kept_runs_stay(artifacts: Path) -> None:
    runs = artifacts / "runs"
    teacher = str(runs / "colors-000000000002")
    (runs / "colors-000000000006" / "config.json").write_text(json.dumps({"train": {"teacher": [teacher]}}))
    assert planned(artifacts)[1] == ["1", "3", "4"]


def test_what_is_planned_is_removed_unless_it_is_needed_by_then(artifacts: Path) -> None:
    folder = artifacts / "store" / "colors"
    plan = plan_prune(artifacts, 2)
    promote(folder, 2, Change("stable", why="the best after all"))
    removed = prune(plan)
    assert versions(folder) == [2, 5, 6]
    assert {path.name for path in removed} >= {"1", "3", "4"}
    assert resolve(folder).name == "2"
    assert not [path for path in folder.iterdir() if path.name.startswith(".staging")]
    assert prune(plan) == []


def test_the_command_removes_nothing_unless_asked_to(artifacts: Path) -> None:
    command = [EDGELINE, "prune", "--artifacts", str(artifacts), "--keep", "2"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert listed.count("would be removed") == 8
    assert listed.splitlines()[-1].endswith("; remove them with --yes")
    assert versions(artifacts / "store" / "colors") == [1, 2, 3, 4, 5, 6]
    done = subprocess.run([*command, "--yes", "--json"], check=True, capture_output=True, text=True).stdout
    assert [row["removed"] for row in json.loads(done)] == [True] * 8
    assert versions(artifacts / "store" / "colors") == [5, 6]
    shutil.rmtree(artifacts)
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)
