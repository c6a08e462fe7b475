"""The Dockerfile and the systemd unit. They are linted, because the tests have no container engine and no init system."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeline.serve.cli import serve

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
OPTION = re.compile(r"--[a-z][a-z-]+")


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_dockerfile_runs_without_root_from_the_wheel_and_pinned_packages() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert "--require-hashes" in text
    assert "dist/edgeline-*.whl" in text
    for path in re.findall(r"requirements/\S+", text):
        assert (ROOT / path).is_file()


def test_the_unit_passes_its_verifier(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / "edgeline.service"
    unit.write_text((DEPLOY / "edgeline.service").read_text().replace("/opt/edgeline/.venv/bin/edgeline", "/bin/true"))
    ended = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (ended.returncode, [line for line in ended.stderr.splitlines() if "edgeline" in line]) == (0, [])


@pytest.mark.parametrize("name", ["Dockerfile", "edgeline.service"])
def test_every_option_that_it_passes_exists(name: str) -> None:
    source = Path(serve.__file__).read_text()
    known = {f"--{each.replace('_', '-')}" for each in re.findall(r"^    (\w+): Annotated", source, re.MULTILINE)}
    [line] = [line for line in (DEPLOY / name).read_text().splitlines() if re.match(r"ExecStart=|ENTRYPOINT", line)]
    assert set(OPTION.findall(line)) - known == set()
