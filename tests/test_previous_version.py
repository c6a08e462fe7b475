"""Run folders and artifacts of the previous version: they open, or are made again; never a traceback."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeline import Classifier

FIXTURES = Path(__file__).parent / "fixtures" / "version_0_1"
OLD_RUN = "tints-d032c7013b40"
OLD_FOLDER = "/tmp/legacy"
"""The folder it was made in; its table of samples contains absolute paths."""
SETTINGS = ["train.epochs=3", "publish.golden=2", "export.variants=[]", "preprocess.size=32"]


@pytest.fixture(name="old")
def copied_fixtures(tmp_path: Path) -> Path:
    """`photos/` and `artifacts/` with the old run and store; the paths in the run's tables are rewritten to the copy."""
    shutil.copytree(FIXTURES / "photos", tmp_path / "photos")
    for name in ("runs", "store"):
        shutil.copytree(FIXTURES / name, tmp_path / "artifacts" / name)
    prepared = tmp_path / "artifacts" / "runs" / OLD_RUN / "prepare"
    table = (prepared / "samples.csv").read_text().replace(OLD_FOLDER, str(tmp_path))
    (prepared / "samples.csv").write_text(table)
    receipt = json.loads((prepared / "receipt.json").read_text())
    receipt["files"]["samples.csv"] = {"size": len(table), "sha256": hashlib.sha256(table.encode()).hexdigest()}
    (prepared / "receipt.json").write_text(json.dumps(receipt))
    return tmp_path


def edgeline(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("edgeline"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def test_an_old_artifact_opens_and_passes_its_golden_samples(old: Path) -> None:
    classifier = Classifier.open(old / "artifacts" / "store" / "tints")
    assert classifier.manifest.version == 1
    photo = (old / "photos" / "cold" / "10.png").read_bytes()
    assert classifier.predict([photo])[0][0].label == "cold"


@pytest.mark.long
def test_the_device_commands_accept_an_old_artifact(old: Path) -> None:
    checked = edgeline("check", "artifacts/store/tints", folder=old)
    assert checked.returncode == 0, checked.stderr
    predicted = edgeline("predict", "artifacts/store/tints", "photos/warm/1.png", "--json", folder=old)
    assert "warm" in predicted.stdout


@pytest.mark.long
@pytest.mark.slow
def test_a_run_next_to_an_old_run_is_made_again_and_published_as_the_next_version(old: Path) -> None:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    model = ["--model", "timm:test_efficientnet", "--weights", "none"]
    command = ["run", "--no-prefect", "--data", "photos", "--name", "tints", *model, *settings, "--json"]
    done = edgeline(*command, folder=old)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads(done.stdout)
    assert Path(summary["artifact"]).name == "2"
    assert not any(step["reused"] for step in summary["steps"])


STEPS = """
import sys
from edgeline.flows.cli.main import main

for step in ("train", "evaluate", "export", "variants", "verify", "publish"):
    sys.argv = ["edgeline", step, sys.argv[-1]]
    try:
        main()
    except SystemExit as ended:
        print(step, ended.code or 0)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_step_of_an_old_run_is_made_again_or_fails_with_one_line(old: Path) -> None:
    command = [sys.executable, "-c", STEPS, f"artifacts/runs/{OLD_RUN}"]
    done = subprocess.run(command, cwd=old, capture_output=True, text=True)
    assert "Traceback" not in done.stderr + done.stdout
    ends = re.findall(r"(?m)^(train|evaluate|export|variants|verify|publish) (\d)$", done.stdout)
    assert [name for name, _ in ends] == ["train", "evaluate", "export", "variants", "verify", "publish"], done.stderr
    failures = [line for line in done.stderr.splitlines() if line.startswith("edgeline: ")]
    assert len(failures) == sum(code != "0" for _, code in ends)
