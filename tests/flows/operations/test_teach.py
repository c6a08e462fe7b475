"""`edgeline teach`: a published model learns more, or the data stays as it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeline.flows import steps
from edgeline.flows.cli.operations.update import comparison_lines
from edgeline.flows.operations import teach as teaching
from edgeline.flows.operations.teach import teach
from edgeline.serve.errors import EdgelineError, VerificationError

EDGELINE = str(Path(sys.executable).with_name("edgeline"))


@pytest.fixture(name="artifacts")
def _artifacts(finished_folder: Path, tmp_path: Path) -> Path:
    """A copy of the published run, with its data in `tints/`."""
    shutil.copytree(finished_folder, tmp_path, dirs_exist_ok=True)
    [config] = (tmp_path / "artifacts" / "runs").glob("*/config.json")
    values = json.loads(config.read_text()) | {"data": str(tmp_path / "tints")}
    config.write_text(json.dumps(values))
    return tmp_path / "artifacts"


@pytest.fixture(name="new")
def _new(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    for number in range(6):
        Image.new("RGB", (40, 32), (30, 160 + 12 * number, 5 * number)).save(tmp_path / "new" / f"{number}.png")
    return tmp_path / "new"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_new_class_is_published_and_compared_with_the_version_before(artifacts: Path, new: Path) -> None:
    shown: list[str] = []
    taught = teach("tints", {"green": [new]}, artifacts=artifacts, show=shown.append)
    assert taught is not None
    assert shown == [f"new class 'green': 6 photos added as copies in {artifacts.parent / 'tints' / 'green'}/"]
    assert taught.steps[-1].folder == artifacts / "store" / "tints" / "2"
    assert (taught.steps[-1].folder / "labels.txt").read_text().split() == ["cold", "green", "warm"]
    comparison = taught.comparison
    assert (comparison.before, comparison.after) == (1, 2)
    assert comparison.other_classes is not None
    assert comparison.other_classes.gain.low <= comparison.other_classes.gain.value <= comparison.other_classes.gain.high
    [green] = comparison.taught
    assert (green.label, green.images, green.before) == ("green", 1, None)
    assert comparison_lines(comparison)[0].startswith("version 2 against 1, on test images that neither has learned from")
    # The same call again: the photos are there, and nothing is done twice.
    again = teach("tints", {"green": [new]}, artifacts=artifacts, show=shown.append)
    assert again is not None
    assert all(step.reused for step in again.steps)


@pytest.mark.parametrize("error", [VerificationError("the file does not compute what PyTorch computes"), KeyboardInterrupt()])
def test_if_nothing_is_published_the_data_is_as_before(
    artifacts: Path, new: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = files(artifacts.parent / "tints")
    seen: list[int] = []

    def fail(*_: Any) -> None:
        seen.append(len(files(artifacts.parent / "tints")))
        raise error

    monkeypatch.setattr(steps, "run_pipeline", fail)
    with pytest.raises(type(error)) as raised:
        teach("tints", {"green": [new]}, artifacts=artifacts, show=print)
    assert seen == [len(before) + 6]
    assert files(artifacts.parent / "tints") == before
    assert not (artifacts.parent / "tints" / "green").exists()
    if isinstance(error, EdgelineError):
        assert str(raised.value).endswith("nothing was published, and the data is as before")


def test_a_dry_run_only_shows_what_would_be_added(artifacts: Path, new: Path) -> None:
    before = files(artifacts.parent)
    command = [EDGELINE, "teach", "tints", f"green={new}", "--artifacts", str(artifacts), "--dry-run"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr.startswith("new class 'green': 6 photos added as copies in ")
    assert files(artifacts.parent) == before


REJECTED = {
    "no such name": (["birds", "owl={new}"], "no published version of 'birds'", 1),
    "no folder": (["tints", "owl"], "'owl' is not class=DIR", 1),
    "an empty folder": (["tints", "owl={empty}"], "no readable image of 'owl'", 1),
    "no class": (["tints"], "Missing argument", 2),
}


@pytest.mark.parametrize(("arguments", "message", "code"), REJECTED.values(), ids=REJECTED)
def test_bad_input_is_one_line(artifacts: Path, new: Path, arguments: list[str], message: str, code: int) -> None:
    (new.parent / "empty").mkdir()
    given = [argument.format(new=new, empty=new.parent / "empty") for argument in arguments]
    done = subprocess.run([EDGELINE, "teach", *given, "--artifacts", str(artifacts)], capture_output=True, text=True)
    assert done.returncode == code
    assert message in done.stderr
    assert code == 2 or len(done.stderr.strip().splitlines()) == 1


def test_a_version_whose_run_is_gone_is_rejected(artifacts: Path, new: Path) -> None:
    shutil.rmtree(artifacts / "runs")
    with pytest.raises(EdgelineError, match="the run of tints 1 is not in "):
        teaching.published_run(artifacts, "tints")
