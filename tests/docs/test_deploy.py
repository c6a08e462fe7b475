"""The Dockerfile and the systemd units. They are linted, because the tests have no container engine and no init system."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeline.flows.orchestration.crashes.run_process import this_machine
from edgeline.flows.up.services import UpOptions, server_environment, services
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


def test_the_units_pass_their_verifier(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    units = [tmp_path / path.name for path in DEPLOY.glob("*.service")]
    assert len(units) == 4
    for unit in units:
        text = (DEPLOY / unit.name).read_text()
        unit.write_text(re.sub(r"/opt/edgeline/.venv/bin/\w+", "/bin/true", text))
    ended = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (ended.returncode, [line for line in ended.stderr.splitlines() if "edgeline" in line]) == (0, [])


def test_the_units_set_what_edgeline_up_sets() -> None:
    options = UpOptions(artifacts=Path("/var/lib"))
    expected = server_environment(options) | {"PREFECT_HOME": "/var/lib/edgeline/prefect"}
    own = {key for key in expected if key not in os.environ} - {"PREFECT_WORKER_QUERY_SECONDS", "PYTHONUNBUFFERED", "NO_PROXY"}
    for name in ("prefect", "worker", "sweep"):
        text = (DEPLOY / f"edgeline-{name}.service").read_text()
        stated = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
        assert {key: expected[key] for key in stated} == stated
        if name == "prefect":  # the database is SQLite in Prefect's home by default
            assert own - set(stated) <= {"PREFECT_SERVER_DATABASE_CONNECTION_URL", "OMP_WAIT_POLICY"}
    [command] = [service.command() for service in services(options) if service.name == "worker"]
    unit = (DEPLOY / "edgeline-worker.service").read_text().replace("%H", this_machine())
    assert f"prefect {' '.join(command[4:])}\n" in unit


@pytest.mark.parametrize("name", ["Dockerfile", "edgeline.service"])
def test_every_option_that_it_passes_exists(name: str) -> None:
    source = Path(serve.__file__).read_text()
    known = {f"--{each.replace('_', '-')}" for each in re.findall(r"^    (\w+): Annotated", source, re.MULTILINE)}
    [line] = [line for line in (DEPLOY / name).read_text().splitlines() if re.match(r"ExecStart=|ENTRYPOINT", line)]
    assert set(OPTION.findall(line)) - known == set()
