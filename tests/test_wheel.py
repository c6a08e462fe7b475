"""What a device installs: the built wheel with its pinned requirements, in a separate environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_the_wheel_with_its_pinned_requirements_verifies_and_predicts(make_artifact, tmp_path: Path) -> None:
    venv, python = tmp_path / "venv", tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = [*pip, "--require-hashes", "-r", ROOT / "requirements" / "device.txt"]
    installed = subprocess.run(requirements, capture_output=True, text=True)
    if "No matching distribution" in installed.stderr or "Connection" in installed.stderr:
        pytest.skip("no package registry can be reached")
    assert installed.returncode == 0, installed.stderr
    subprocess.run([*pip, "--no-deps", next(tmp_path.glob("*.whl"))], check=True)

    artifact = make_artifact(name="birds", store=tmp_path / "store")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.jpg")
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": ""}, "capture_output": True, "text": True}
    assert subprocess.run([python, "-c", "import torch"], **elsewhere).returncode != 0
    for command in (["check", str(artifact)], ["predict", str(artifact), "photo.jpg"]):
        done = subprocess.run([venv / "bin" / "edgeline", *command], **elsewhere)
        assert done.returncode == 0, done.stderr
    for command in (["run"], ["conformance", "http://127.0.0.1:1"]):
        done = subprocess.run([venv / "bin" / "edgeline", *command], **elsewhere)
        assert done.returncode == 1
        assert "pip install 'edgeline[" in done.stderr
