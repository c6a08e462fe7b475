"""The benchmark of kills, with a few of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.long
def test_each_input_is_published_once_although_server_worker_and_runs_are_killed() -> None:
    command = [sys.executable, SCRIPT, "--kills", "4", "--runs", "2", "--longest", "15"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["kills"], figures["published"], figures["digests"]) == (4, 2, 2)
    assert (figures["bad"], figures["unfinished"], done.returncode) == ([], 0, 0)
