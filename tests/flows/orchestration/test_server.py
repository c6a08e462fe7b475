import logging
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from edgeline.flows import steps as pipeline_steps
from edgeline.flows.orchestration.server import check_server, run_with_prefect
from edgeline.pipeline.config import PipelineConfig
from edgeline.serve.errors import DataError, EdgelineError
from tests.support.cases import cases

ASK = (
    "import sys\nfrom edgeline.flows.orchestration.server import configured_url\n"
    "print(configured_url(), 'prefect' in sys.modules)"
)
PROFILES = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://profile/api"\n'
PLACES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "nothing anywhere": ({}, {}, "None False"),
    "the environment": ({"PREFECT_API_URL": "http://environment/api"}, {}, "http://environment/api True"),
    "the active profile": ({}, {".prefect/profiles.toml": PROFILES}, "http://profile/api True"),
    "a profile in another file": ({"PREFECT_PROFILES_PATH": "p.toml"}, {"p.toml": PROFILES}, "http://profile/api True"),
    "prefect.toml": ({}, {"prefect.toml": '[api]\nurl = "http://file/api"\n'}, "http://file/api True"),
    "pyproject.toml": ({}, {"pyproject.toml": '[tool.prefect.api]\nurl = "http://project/api"\n'}, "http://project/api True"),
    "pyproject.toml of something else": ({}, {"pyproject.toml": "[project]\ndependencies = ['prefect']\n"}, "None False"),
    ".env": ({}, {".env": "PREFECT_API_URL=http://dotenv/api\n"}, "http://dotenv/api True"),
    "other settings only": ({"PREFECT_LOGGING_LEVEL": "INFO"}, {}, "None True"),
}

# Loaded by every Python that has it on its path, including the embedded server's.
WATCH = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[:2]
        with open(os.environ["NOTES"], "a") as notes:
            print(event, address, file=notes)

sys.addaudithook(note)
"""
RUN = """
import sys
from edgeline.flows.orchestration.server import run_with_prefect
from edgeline.pipeline.config import PipelineConfig
run, steps = run_with_prefect(PipelineConfig.model_validate_json(sys.argv[1]))
print(len(steps), steps[-1].folder.parent.name, steps[-1].folder.name)
"""


QUICK = ("nothing anywhere", "the environment", "pyproject.toml of something else")
"""The others import Prefect too, for three seconds each."""


@pytest.mark.parametrize(("environment", "files", "answer"), cases(PLACES, quick=QUICK))
def test_the_configured_server_is_found_in_every_place_that_prefect_reads(
    tmp_path: Path, environment: dict[str, str], files: dict[str, str], answer: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment = inherited | {"HOME": str(tmp_path)} | environment
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == (answer, "")


UNREADABLE: dict[str, tuple[dict[str, str], str]] = {
    "a broken file": ({}, "[api\n"),
    "half an address": ({"PREFECT_API_URL": "http://[::1/api"}, ""),
}


@pytest.mark.long
@pytest.mark.parametrize(("environment", "file"), cases(UNREADABLE, quick=["a broken file"]))
def test_settings_that_prefect_cannot_read_are_an_error(tmp_path: Path, environment: dict[str, str], file: str) -> None:
    (tmp_path / "prefect.toml").write_text(file)
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    assert done.stderr.splitlines()[-1].startswith("edgeline.serve.errors.ConfigError: Prefect cannot read its settings: ")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, but not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_an_unreachable_server_is_reported_in_one_line(closed_port: int) -> None:
    url = f"http://me:secret@127.0.0.1:{closed_port}/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(EdgelineError) as failure:
        run_with_prefect(PipelineConfig())
    assert failure.value.code == "prefect_unreachable"
    assert str(failure.value) == (
        f"the Prefect server http://127.0.0.1:{closed_port}/api cannot be used: [Errno 111] Connection refused; start it "
        "(prefect server start), unset PREFECT_API_URL for an embedded one, or use --no-prefect; finished steps are kept"
    )


UNUSABLE = {"no URL": "nonsense", "an invalid port": "http://127.0.0.1:99999999/api"}


@pytest.mark.parametrize("url", UNUSABLE.values(), ids=UNUSABLE)
def test_an_invalid_address_is_reported_in_one_line(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(EdgelineError, match="cannot be used") as failure:
        check_server(url)
    assert "\n" not in str(failure.value)


def test_a_wrong_password_is_reported(prefect_api: str) -> None:
    with temporary_settings({PREFECT_API_AUTH_STRING: "me:wrong"}), pytest.raises(EdgelineError, match="401 Unauthorized"):
        check_server(prefect_api)


def test_a_failing_step_prints_nothing_but_its_error(
    prefect_api: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="/no/such/folder"):
        run_with_prefect(PipelineConfig(data="/no/such/folder", artifacts=str(tmp_path)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
@pytest.mark.slow
def test_the_configured_server_is_used_silently(
    prefect_api: str, finished: PipelineConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [handler.filters.copy() for handler in logging.getLogger().handlers]
    _, steps = run_with_prefect(finished)
    assert [step.name for step in steps] == list(pipeline_steps.STEP_NAMES)
    assert capfd.readouterr() == ("", "")
    assert not (Path(finished.artifacts) / "prefect").exists()
    assert [handler.filters for handler in logging.getLogger().handlers] == before


@pytest.mark.long
def test_without_a_server_an_embedded_one_is_used_and_nothing_leaves_the_machine(
    unpublished: PipelineConfig, migrated_home: Callable[[], Path], tmp_path: Path
) -> None:
    migrated_home().rename(Path(unpublished.artifacts) / "prefect")
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment = inherited | {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "watch"), "NOTES": str(tmp_path / "notes")}
    for name in ("DO_NOT_TRACK", "CI"):
        environment.pop(name, None)
    # Prefect's client sends telemetry only from a terminal.
    terminal, output = pty.openpty()
    command = [sys.executable, "-c", RUN, unpublished.model_dump_json()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    with open(terminal, "rb", buffering=0) as screen:
        assert (done.returncode, screen.read(4096), done.stderr) == (0, b"7 tints 1\r\n", "")
    assert list((tmp_path / ".prefect").iterdir()) == []  # created by importing Prefect
    reached = (tmp_path / "notes").read_text().splitlines()
    assert reached
    assert [note for note in reached if "127.0.0.1" not in note] == []
