import copy
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.training.context import TrainingResult
from edgeline.pipeline.training.fine_tuning import layers, resume
from edgeline.pipeline.training.fine_tuning.layers import LayerTrainer
from edgeline.pipeline.training.fine_tuning.resume import PREVIOUS, RESUME
from edgeline.pipeline.training.strategies import gradual
from tests.support.cases import cases
from tests.support.layer_training import (
    EPOCHS,
    Fitted,
    State,
    changed,
    config,
    context,
    interrupt,
    state_of,
)


@pytest.fixture(scope="module", name="uninterrupted")
def weights_of_an_uninterrupted_run(
    small_template: Network, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[State, TrainingResult]:
    network, folder = copy.deepcopy(small_template), tmp_path_factory.mktemp("uninterrupted")
    result = gradual.fit(context(network, shapes, config(), folder))
    return state_of(network), result


def during_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=3, batch=1)


def before_the_first_state(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, epoch=1, batch=2)


def between_the_two_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old state has its other name, the new one is not there."""
    original = resume.replace_file

    def broken(path: Path, write: Callable[[Path], None]) -> None:
        if path.name == RESUME and (path.parent / PREVIOUS).exists():
            raise KeyboardInterrupt
        original(path, write)

    monkeypatch.setattr(resume, "replace_file", broken)


def after_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = layers.compute_val_logits

    def broken(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > EPOCHS:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(layers, "compute_val_logits", broken)


KILLS = {
    "before the first state": (before_the_first_state, set()),
    "during an epoch": (during_an_epoch, {RESUME, PREVIOUS}),
    "between the two states": (between_the_two_states, {PREVIOUS}),
    "after the last epoch": (after_the_last_epoch, {RESUME, PREVIOUS}),
}


@pytest.mark.parametrize(("kill", "left"), cases(KILLS, quick=["during an epoch"]))
def test_an_interrupted_training_ends_with_the_same_weights_as_an_uninterrupted_one(
    kill: Callable[[pytest.MonkeyPatch], None],
    left: set[str],
    fitted: Fitted,
    small_template: Network,
    uninterrupted: tuple[State, TrainingResult],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            fitted(copy.deepcopy(small_template), config())
    assert {path.name for path in (tmp_path / "selection").iterdir()} == left
    network = copy.deepcopy(small_template)
    result = fitted(network, config())
    assert changed(uninterrupted[0], network) == set()
    assert result.history == uninterrupted[1].history
    assert (result.calibration.logits_NK == uninterrupted[1].calibration.logits_NK).all()
    assert caplog.messages == []


@pytest.fixture
def epochs_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs whose batches were read."""
    epochs: list[int] = []
    original = LayerTrainer._batches

    def recording(trainer: LayerTrainer, epoch: int, generator: torch.Generator) -> Iterator[Any]:
        epochs.append(epoch)
        return original(trainer, epoch, generator)

    monkeypatch.setattr(LayerTrainer, "_batches", recording)
    return epochs


@pytest.mark.long
def test_resuming_on_another_number_of_threads_is_reported(fitted: Fitted, small_template: Network) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, epoch=2)
        with pytest.raises(KeyboardInterrupt):
            fitted(copy.deepcopy(small_template), config("full", epochs=2))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        result = fitted(copy.deepcopy(small_template), config("full", epochs=2))
    finally:
        torch.set_num_threads(threads)
    (finding,) = result.findings
    assert finding.code == "resumed_elsewhere"
    assert f"resumed on CPU, {threads + 1} threads after CPU, {threads} threads" in finding.message


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from edgeline.pipeline.training.fine_tuning import resume
from edgeline.pipeline.training.strategies import gradual
from edgeline.pipeline.training.context import TrainingContext
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.data.samples import read_prepared
from edgeline.serve.preprocess import PreprocessSpec

original, states = resume.replace_file, []

def die_after_the_second(path, write):
    original(path, write)
    states.append(path.name)
    if states.count("resume.pt") == 2:
        os.kill(os.getpid(), signal.SIGKILL)

resume.replace_file = die_after_the_second
network, _ = build("mobilenet_v3_small", "none", classes=3, dropout=0.2)
network.load_state_dict(torch.load(sys.argv[3], weights_only=True))
config = TrainConfig(strategy="gradual", epochs=4, batch_size=12, views=0, refit=False)
folder = Path(sys.argv[2])
gradual.fit(TrainingContext(
    network=network, spec=PreprocessSpec(height=32, width=32), prepared=read_prepared(Path(sys.argv[1])), config=config,
    seed=1, folder=folder, cache=folder / "cache", device=torch.device("cpu"),
))
"""


@pytest.mark.long
def test_a_killed_training_ends_with_the_same_weights_as_an_uninterrupted_one(
    make_run: Callable[..., Run],
    fitted: Fitted,
    small_template: Network,
    uninterrupted: tuple[State, TrainingResult],
    epochs_trained: list[int],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    prepared = make_run(tmp_path_factory.mktemp("killed")).step("prepare")
    torch.save(small_template.state_dict(), prepared / "network.pth")
    arguments = [str(prepared), str(tmp_path), str(prepared / "network.pth")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in (tmp_path / "selection").iterdir()} == {RESUME, PREVIOUS}
    network = copy.deepcopy(small_template)
    fitted(network, config())
    assert epochs_trained == [3, 4]
    assert changed(uninterrupted[0], network) == set()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16  # within the tensors, where torch.load detects nothing
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], list[int]]] = {
    "the newest is cut": (truncate, (RESUME,), [2, 3, 4]),
    "the newest has another bit": (flip_a_bit, (RESUME,), [2, 3, 4]),
    "the newest is empty": (empty, (RESUME,), [2, 3, 4]),
    "both are cut": (truncate, (RESUME, PREVIOUS), [1, 2, 3, 4]),
    "the one before is cut": (truncate, (PREVIOUS,), [3, 4]),
}


@pytest.fixture(scope="module", name="states")
def two_states(small_template: Network, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that a training leaves behind when it ends in its third epoch."""
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, epoch=3)
        with pytest.raises(KeyboardInterrupt):
            gradual.fit(context(copy.deepcopy(small_template), shapes, config(), folder))
    return {path.name: path.read_bytes() for path in (folder / "selection").iterdir()}


@pytest.mark.long
@pytest.mark.parametrize(("damage", "names", "trained"), cases(DAMAGES, quick=["the newest is cut"]))
def test_a_damaged_state_costs_an_epoch_and_does_not_change_the_result(
    damage: Callable[[Path], None],
    names: tuple[str, ...],
    trained: list[int],
    states: dict[str, bytes],
    fitted: Fitted,
    small: Network,
    uninterrupted: tuple[State, TrainingResult],
    epochs_trained: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "selection"
    folder.mkdir()
    for name, data in states.items():
        (folder / name).write_bytes(data)
    for name in names:
        damage(folder / name)
    with caplog.at_level(logging.WARNING):
        fitted(small, config())
    assert epochs_trained == trained
    assert changed(uninterrupted[0], small) == set()
    expected = [
        f"{folder / name} is damaged and was deleted; training resumes from the state before it, if there is one"
        for name in names
    ]
    assert caplog.messages == ([] if names == (PREVIOUS,) else expected)
