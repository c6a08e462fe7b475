import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.pipeline.runs.receipts import is_current, read_receipt, result_digest, run_step
from edgeline.serve.errors import EdgelineError


def build(folder: Path) -> None:
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two")


def never(folder: Path) -> None:
    pytest.fail("a step was built although its result existed")


@pytest.fixture(name="step")
def built_step(tmp_path: Path) -> Path:
    assert run_step(tmp_path / "run" / "train", "key", build)
    return tmp_path / "run" / "train"


def test_a_finished_step_is_not_built_again(step: Path) -> None:
    assert not run_step(step, "key", never)
    assert is_current(step, "key")


def test_a_finished_step_consists_of_its_files_and_a_receipt(step: Path) -> None:
    assert sorted(path.name for path in step.rglob("*")) == ["a.txt", "b.txt", "deep", "receipt.json"]
    assert sorted(path.name for path in step.parent.iterdir()) == [".train.lock", "train"]
    receipt = read_receipt(step)
    assert receipt
    assert receipt["files"].keys() == {"deep/a.txt", "b.txt"}
    assert receipt["made"]["command"] == f"edgeline {step.name} RUN"


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file is lost": lambda step: (step / "b.txt").unlink(),
    "a file is longer": lambda step: (step / "b.txt").write_text("two!"),
    "a file has other bytes": lambda step: (step / "deep" / "a.txt").write_text("0ne"),
    "a file became a folder": lambda step: ((step / "b.txt").unlink(), (step / "b.txt").mkdir()),
    "the receipt is lost": lambda step: (step / "receipt.json").unlink(),
    "the receipt is cut": lambda step: (step / "receipt.json").write_text('{"key": "key", "files'),
    "the receipt is not text": lambda step: (step / "receipt.json").write_bytes(b"\xff\xfe"),
    "the receipt is a list": lambda step: (step / "receipt.json").write_text("[]"),
    "the receipt lacks a digest": lambda step: (step / "receipt.json").write_text('{"key": "key", "files": {"b.txt": {}}}'),
    "the receipt has text for entries": lambda step: (step / "receipt.json").write_text(
        '{"key": "key", "files": {"b.txt": "x"}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_step_is_built_again(step: Path, damage: Callable[[Path], object]) -> None:
    damage(step)
    assert run_step(step, "key", build)
    assert ((step / "b.txt").read_text(), (step / "deep" / "a.txt").read_text()) == ("two", "one")
    assert is_current(step, "key")


def test_another_key_builds_the_step_again_without_the_old_files(step: Path) -> None:
    assert run_step(step, "other", lambda folder: (folder / "c.txt").touch())
    assert sorted(path.name for path in step.iterdir()) == ["c.txt", "receipt.json"]


def test_a_failed_build_keeps_the_old_result(step: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run_step(step, "other", fail)
    assert is_current(step, "key")


def fail_halfway(folder: Path) -> None:
    (folder / "half.txt").write_text("half")
    raise RuntimeError("no")


def test_a_build_resumes_from_its_own_partial_result(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run_step(tmp_path / "train", "key", fail_halfway)
    assert run_step(tmp_path / "train", "key", lambda folder: (folder / "half.txt").rename(folder / "whole.txt"))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["receipt.json", "whole.txt"]


def test_a_partial_result_for_another_key_is_deleted(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run_step(tmp_path / "train", "key", fail_halfway)
    assert run_step(tmp_path / "train", "other", build)
    assert not (tmp_path / "train" / "half.txt").exists()


HOLDER = """
import sys, time
from pathlib import Path
from edgeline.pipeline.runs.receipts import run_step
def build(folder):
    (folder / "half.txt").touch()
    print("building", flush=True)
    sys.stdin.read()
run_step(Path(sys.argv[1]), "key", build)
"""


@pytest.fixture(name="holder")
def process_that_is_building(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "train")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "building\n"
        yield process
        process.kill()


def test_a_step_that_another_process_builds_is_locked(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(EdgelineError, match=f"is in use by process {holder.pid} on ") as caught:
        run_step(tmp_path / "train", "key", never)
    assert caught.value.code == "run_locked"


def test_after_a_kill_the_lock_is_free_and_the_partial_result_is_there(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert run_step(tmp_path / "train", "key", lambda folder: (folder / "half.txt").rename(folder / "whole.txt"))


def test_a_results_digest_depends_on_its_files_only(step: Path, tmp_path: Path) -> None:
    run_step(tmp_path / "same", "another key", build)
    run_step(tmp_path / "other", "key", lambda folder: (folder / "b.txt").write_text("three"))
    assert result_digest(step) == result_digest(tmp_path / "same") != result_digest(tmp_path / "other")


def test_a_missing_step_is_an_error_that_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(EdgelineError, match="run `edgeline train` first") as caught:
        result_digest(tmp_path / "train")
    assert caught.value.code == "step_missing"
