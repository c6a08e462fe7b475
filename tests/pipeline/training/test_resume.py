"""T02, T03: a fault while the state of a training is saved never costs more than an epoch."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


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
