import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeline.pipeline.models.checkpoint import CALIBRATION, SETTINGS
from edgeline.pipeline.models.weights import TENSORS
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.fine_tuning import distributed
from edgeline.pipeline.training.train import build_checkpoint
from edgeline.serve.errors import EdgelineError, TrainingError

CPU = torch.device("cpu")
SETTINGS_OF_BOTH = {"epochs": 3, "batch_size": 10, "dropout": 0, "views": 0, "augment": "flip"}


def test_one_process_computes_whole_batches_and_waits_for_nobody() -> None:
    rows, gradient = np.arange(7), torch.ones(2)
    assert distributed.share(rows).tolist() == list(range(7))
    assert distributed.everywhere(lambda: 3) == 3
    distributed.wait_for_all()
    distributed.add_up([gradient])
    assert gradient.tolist() == [1, 1]


def test_without_a_gpu_one_process_trains_unless_more_are_configured() -> None:
    assert distributed.process_count(TrainConfig(strategy="full"), CPU) == 1
    assert distributed.process_count(TrainConfig(strategy="full", processes=2), CPU) == 2


@pytest.mark.parametrize(("strategy", "processes"), [("lp-ft", 3), ("auto", 3), ("head", 1), ("few-shot", 1), ("scratch", 1)])
def test_each_gpu_gets_a_process_if_layers_are_trained_with_fixed_batch_norms(
    strategy: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)  # a stand-in: no machine here has so many
    assert distributed.process_count(TrainConfig(strategy=strategy), torch.device("cuda")) == processes


@pytest.fixture(scope="module", name="trained")
def trained_by_one_and_by_two(make_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder of a training step in one process, and in two."""
    folders = {}
    for processes in (1, 2):
        train = SETTINGS_OF_BOTH | {"strategy": "lp-ft", "processes": processes}
        run = make_run(tmp_path_factory.mktemp("run"), train=train)
        folders[processes] = run.folder / "train.partial"
        folders[processes].mkdir()
        build_checkpoint(run, folders[processes])
    return folders


def history(folder: Path) -> list[dict[str, float]]:
    epochs: list[dict[str, float]] = json.loads((folder / SETTINGS).read_text())["history"]
    return epochs


@pytest.mark.long
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(trained: dict[int, Path]) -> None:
    one, two = (history(trained[processes]) for processes in (1, 2))
    for name in ("train_loss", "val_loss"):
        assert [epoch[name] for epoch in two] == pytest.approx([epoch[name] for epoch in one], rel=1e-3)
    first, second = (load_file(trained[processes] / TENSORS) for processes in (1, 2))
    assert first.keys() == second.keys()
    moved = max((first[name] - second[name]).abs().max().item() for name in first)
    assert moved < 2e-3  # rounding in the gradients, which AdamW divides by their size


@pytest.mark.long
def test_two_processes_write_the_files_that_one_writes(trained: dict[int, Path]) -> None:
    one, two = (sorted(path.name for path in trained[processes].iterdir()) for processes in (1, 2))
    assert one == two
    settings = json.loads((trained[2] / SETTINGS).read_text())
    assert settings["device"].startswith("2 processes, CPU")
    calibration = [np.load(trained[processes] / CALIBRATION) for processes in (1, 2)]
    np.testing.assert_allclose(calibration[1]["logits"], calibration[0]["logits"], atol=0.02)
    assert calibration[0]["images"].tolist() == calibration[1]["images"].tolist()


@pytest.mark.long
def test_the_error_of_a_process_is_the_error_of_the_training(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path, train=SETTINGS_OF_BOTH | {"strategy": "full", "processes": 2, "learning_rate": 1e30})
    with pytest.raises(EdgelineError, match=r"the loss became (nan|inf) in epoch .*; lower train\.learning_rate") as caught:
        build_checkpoint(run, tmp_path)
    assert caught.value.code == "loss_not_finite"
    assert list(tmp_path.glob("error-*")) == []


@pytest.mark.long
def test_another_number_of_processes_than_expected_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(distributed.EXPECTED, "3")
    with pytest.raises(EdgelineError, match="2 processes train together, expected 3: start as many on every machine"):
        distributed.launch(2, "edgeline.pipeline.training.train", [str(tmp_path), str(tmp_path)], tmp_path)


DYING = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_training_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "dying.py"
    module.write_text(
        "import os, signal\nos.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)\nimport time; time.sleep(60)\n"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(TrainingError, match="a training process ended unexpectedly") as caught:
            distributed.launch(2, "dying", [], tmp_path)
    assert caught.value.code == "process_ended"
    assert "\n" not in str(caught.value)


TRAIN = """
import sys
from pathlib import Path
from edgeline.pipeline.runs.run import open_run
from edgeline.pipeline.training.train import build_checkpoint
build_checkpoint(open_run(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.long
def test_no_process_outlives_the_one_that_started_them(make_run: Callable[..., Run], tmp_path: Path) -> None:
    train = {"strategy": "lp-ft", "processes": 2, "epochs": 200, "patience": 200}
    run = make_run(tmp_path, train=SETTINGS_OF_BOTH | train)
    folder = run.folder / "train.partial"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", TRAIN, str(run.folder), str(folder)])
    try:
        wait_for(lambda: (folder / "selection" / "resume.pt").exists())
        assert len(processes_of(run.folder)) == 2
        parent.kill()
        parent.wait()
        wait_for(lambda: not processes_of(run.folder))
    finally:
        for pid in processes_of(run.folder):
            os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    """The workers of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "edgeline.pipeline.training.train" in arguments and str(folder.resolve()) in arguments:
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], Any]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("did not happen within a minute")
