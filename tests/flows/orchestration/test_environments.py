"""`run`, `predict`, `check` and `serve` as processes in environments that people have: a table of environments x commands.

Each prefix is a command that changes the environment and then executes the rest of its arguments in the same process.
"""

import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support.processes import MAIN, started, wait_until_ready
from tests.support.shared_results import shared_result

pytestmark = pytest.mark.long

LABELS = ("cold ❄ 寒い", "warm 🔥")
ESCAPED = r"warm \U0001f525"
TINY = [
    *("--model", "timm:test_efficientnet", "--weights", "none", "--name", "tints"),
    *("--set=train.strategy=head", "--set=train.epochs=2", "--set=preprocess.size=32"),
    *("--set=publish.golden=2", "--set=export.variants=[]"),
]
COMMANDS = ("run", "predict", "predict --json", "check", "serve")

# As an arbitrary user id in a container; permissions of files apply to it, other than to root.
NO_ENTRY = ("unshare", "--user", "--map-user=12345")
MOUNTS = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")


def shell(setting: str) -> tuple[str, ...]:
    return "sh", "-c", f'{setting}; exec "$@"', "sh"


@dataclass(frozen=True, kw_only=True)
class Environment:
    prefix: tuple[str, ...] = ()
    folder: str = "place"
    """Name of the folder that everything is in."""
    prefect: bool = False
    """Whether `run` is tried with an embedded Prefect server."""
    read_only: tuple[str, ...] = ()
    """Folders that cannot be written, relative to it."""
    errors: dict[str, str] = field(default_factory=dict)
    """The commands that fail, each with a pattern of the one line that explains it."""


DATA = re.compile(r"^(\d+ images of 2 classes.*|  .*|(?:note|warning): .*)\n", re.MULTILINE)
"""How `run` describes the photos and what it notices about them, on standard error."""
MEMORY = r"edgeline: not enough memory or threads: .* \[out_of_memory\]\n"
ENVIRONMENTS = {
    "F9-no HOME": Environment(prefix=("env", "-u", "HOME")),
    "F9-no HOME and no entry of the user": Environment(
        prefix=("env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME", *NO_ENTRY), prefect=True
    ),
    "F9-HOME cannot be created": Environment(
        prefix=("env", "-u", "USER", "-u", "LOGNAME", "HOME=/proc/nobody", *NO_ENTRY), prefect=True
    ),
    "F17-ASCII on standard output": Environment(prefix=("env", "LC_ALL=C", "PYTHONIOENCODING=ascii")),
    "F17-ASCII everywhere": Environment(
        prefix=("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"), errors={"run": "LC_ALL=C.UTF-8"}
    ),
    "F18-3 GB of address space": Environment(prefix=("prlimit", "--as=3000000000"), errors={"run": MEMORY}),
    "F19-odd characters": Environment(folder="a?b#c%20 ' \"é🔥~", prefect=True),
    "F19-a tilde": Environment(folder="~"),
    "umask 077": Environment(prefix=shell("umask 077")),
    "umask 000": Environment(prefix=shell("umask 000")),
    "read-only data": Environment(prefix=NO_ENTRY, read_only=("photos",)),
    "read-only artifact": Environment(prefix=("env", "-u", "HOME", *NO_ENTRY), read_only=("store",)),
    "read-only artifacts folder": Environment(
        prefix=NO_ENTRY,
        read_only=("artifacts",),
        errors={"run": r"edgeline: .*artifacts/runs/\S+ cannot be written: Permission denied"},
    ),
}


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest) -> Path:
    """`photos/` of two classes, and `store/` with the artifact that was trained on them."""

    def build(folder: Path) -> None:
        chance = random.Random(0)
        for label, color in zip(LABELS, ((40, 70, 200), (200, 60, 40)), strict=True):
            (folder / "photos" / label).mkdir(parents=True)
            for index in range(8):
                pixels = Image.new("RGB", (40, 32), tuple(level + chance.randint(-30, 30) for level in color))
                pixels.putpixel((chance.randrange(40), chance.randrange(32)), (0, 0, 0))
                pixels.save(folder / "photos" / label / f"{index}.png")
        command = ["run", "--no-prefect", *TINY, "--data", str(folder / "photos"), "--artifacts", str(folder / "artifacts")]
        subprocess.run([*MAIN, *command], check=True)
        (folder / "artifacts" / "store").rename(folder / "store")
        shutil.rmtree(folder / "artifacts")

    return shared_result(request.config, "environments", build, code=("edgeline.flows.steps",), inputs={"file": __file__})


@pytest.fixture
def place(trained: Path, migrated_home: Callable[[], Path], tmp_path: Path) -> Callable[[Environment], Path]:
    """`place(environment)`: the folder with copies of the photos and the artifact, as the environment has it."""

    def make(environment: Environment) -> Path:
        folder = tmp_path / environment.folder
        shutil.copytree(trained, folder)
        (folder / "artifacts").mkdir()
        if environment.prefect:
            migrated_home().rename(folder / "artifacts" / "prefect")
        for name in environment.read_only:
            for path in (folder / name, *(folder / name).rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
        return folder

    return make


def arguments(environment: Environment, command: str, folder: Path) -> list[str]:
    data, artifact = folder / "photos", str(folder / "store" / "tints")
    images = sorted(map(str, data.rglob("*.png")))
    run = ["run", *TINY, "--data", str(data), "--artifacts", str(folder / "artifacts")]
    return {
        "run": run if environment.prefect else [*run, "--no-prefect"],
        "predict": ["predict", artifact, *images],
        "predict --json": ["predict", artifact, *images, "--json"],
        "check": ["check", artifact],
    }[command]


def execute(environment: Environment, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*environment.prefix, *MAIN, *arguments(environment, command, folder)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_command_works_or_prints_one_line(
    environment: Environment, command: str, place: Callable[[Environment], Path]
) -> None:
    folder = place(environment)
    if command == "serve":
        serve(environment, folder)
        return
    done = execute(environment, command, folder)
    complaints = DATA.sub("", done.stderr)
    if expected := environment.errors.get(command):
        assert done.returncode == 1, done.stdout
        assert re.search(expected, complaints), done.stderr
        assert complaints.count("\n") == 1, done.stderr
        return
    assert (done.returncode, complaints) == (0, "")
    CHECKS.get(command, lambda done, folder: None)(done, folder)


def check_predictions(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert len(done.stdout.splitlines()) == 16
    assert LABELS[1] in done.stdout or ESCAPED in done.stdout


def check_json(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {prediction["label"] for line in lines for prediction in line["predictions"]} == set(LABELS)


def check_published(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    artifact = folder / "artifacts" / "store" / "tints" / "1"
    assert (artifact / "labels.txt").read_text(encoding="utf-8").splitlines() == list(LABELS)
    assert {path.stat().st_mode & 0o777 for path in artifact.rglob("*") if path.is_file()} == {0o444}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing is written beside it
    if (database := folder / "artifacts" / "prefect" / "prefect.db").exists():
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("SELECT state_name FROM flow_run").fetchall() == [("Completed",)]


CHECKS = {
    "run": check_published,
    "predict": check_predictions,
    "predict --json": check_json,
}


DATASETS = {"F8-the same photos": False, "F8-other photos": True}


@pytest.mark.parametrize("other", DATASETS.values(), ids=DATASETS)
def test_two_first_runs_at_once_in_a_new_artifacts_folder_do_not_break_each_other(
    other: bool, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "photos", tmp_path / "photos")
    if other:
        (tmp_path / "photos" / LABELS[0] / "0.png").unlink()
    started_runs = []
    for photos in (trained / "photos", tmp_path / "photos"):
        command = [*MAIN, "run", *TINY, "--data", str(photos), "--artifacts", str(tmp_path / "artifacts")]
        started_runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"))
    errors = [DATA.sub("", run.communicate()[1]) for run in started_runs]
    codes = [run.returncode for run in started_runs]
    prefect = tmp_path / "artifacts" / "prefect"
    waiting = f"edgeline: waiting for another run that is starting Prefect in {prefect}\n"
    assert sum(error.startswith(waiting) for error in errors) == 1, errors
    rest = "".join(error.removeprefix(waiting) for error in errors)
    if other:
        assert (codes, rest) == ([0, 0], "")
    elif rest:  # the second one reached a step that the first one was building
        assert sorted(codes) == [0, 1]
        assert re.fullmatch(
            r"edgeline: \S+ is in use by process \d+ on .*; wait for it to finish, or stop it \[run_locked\]\n", rest
        )
    else:
        assert codes == [0, 0]
    with closing(sqlite3.connect(prefect / "prefect.db")) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (2,)


def test_a_full_disk_is_one_line(place: Callable[[Environment], Path]) -> None:
    folder = place(Environment())
    shutil.rmtree(folder / "artifacts")
    (folder / "artifacts").mkdir()
    mount = f'mount -t tmpfs -o size=300k tmpfs "{folder}/artifacts" && exec "$@"'
    full = Environment(prefix=(*MOUNTS, mount, "sh"))
    done = execute(full, "run", folder)
    assert done.returncode == 1, done.stdout
    assert re.search(
        "No space left on device|database or disk is full|disk I/O error|the disk with the cache .* is full", done.stderr
    ), done.stderr
    assert DATA.sub("", done.stderr).count("\n") == 1, done.stderr


def serve(environment: Environment, folder: Path) -> None:
    image = next((folder / "photos").rglob("*.png")).read_bytes()
    main = [*environment.prefix, *MAIN]
    with started(folder / "store" / "tints", "--access-log", main=main) as (process, url):
        wait_until_ready(url)
        answer = httpx.post(f"{url}/predict", content=image, headers={"Content-Type": "image/png"}).json()
        assert {prediction["label"] for prediction in answer["predictions"]} == set(LABELS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
