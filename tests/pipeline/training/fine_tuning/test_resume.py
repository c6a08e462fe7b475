"""T02, T03, T10, T17: a training that meets a fault of its machine never costs more than an epoch."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.runs.receipts import run_step
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.fine_tuning.resume import PREVIOUS

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.long
def test_a_fault_at_any_call_leaves_the_state_of_the_last_or_the_new_epoch(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "support" / "state_saver.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    for fault, found in json.loads(done.stdout).items():
        assert {entry["call"] for entry in found} >= {"open", "os.rename", "os.fsync"}
        assert {entry["resumed"][0] for entry in found} == {2, 3}
        for entry in found:
            epochs, weight = entry["resumed"]
            assert weight == epochs, entry
            assert entry["then"] == [epochs + 1] * 2, entry
            message = "killed" if fault == "kill" else os.strerror(getattr(errno, fault))
            assert message in entry["outcome"], entry


@pytest.mark.long
def test_a_terminated_training_resumes_and_finishes_without_standard_output(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    train = {"strategy": "full", "epochs": 4, "patience": 4}
    run = make_run(tmp_path, model="mobilenet_v3_small", weights="none", train=train)
    prepared = run.step("prepare").rename(tmp_path / "prepared")
    run_step(run.step("prepare"), "key", lambda folder: shutil.copytree(prepared, folder, dirs_exist_ok=True))
    call = "from edgeline.flows.cli.main import main; main()"
    command = f"exec {sys.executable} -c '{call}' train {run.folder} >&- 2>&-"
    resumable = run.folder / "train.partial" / "selection" / PREVIOUS
    with subprocess.Popen(command, shell=True) as training:
        until = time.monotonic() + 120
        while not resumable.exists() and training.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert training.poll() is None, "it ended before it could be terminated"
        training.terminate()
        assert training.wait(60) == -signal.SIGTERM
    assert resumable.exists()
    assert not run.step("train").exists()
    assert subprocess.run(command, shell=True, timeout=300, check=False).returncode == 0
    assert len(json.loads((run.step("train") / "checkpoint.json").read_text())["history"]) == 4
