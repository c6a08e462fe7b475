"""Every strategy that trains layers, killed 20 times at random moments, ends with the weights of an uninterrupted training."""

import contextlib
import copy
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.weights import TENSORS
from edgeline.pipeline.training.train import STRATEGIES as FIT
from tests.support.layer_training import STRATEGIES, config, context, save_teacher

KILLS = 20


def train(network: Network, prepared: Prepared, strategy: str, folder: Path) -> None:
    """Train, and write the weights to a file that is complete or absent."""
    teacher = {"teacher": (str(folder.parent / "teacher"),)} if strategy == "distill" else {}
    given = config(strategy, refit=True, epochs=6, **teacher)
    FIT[strategy](context(network, prepared, given, folder))
    torch.save(network.state_dict(), folder / "weights.partial")
    os.replace(folder / "weights.partial", folder / "weights.pth")


def start(network: Network, prepared: Prepared, strategy: str, folder: Path) -> int:
    """Train in a child process, which has loaded torch already; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the threads of a pool are not in a child
            train(copy.deepcopy(network), prepared, strategy, folder)
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.long
@pytest.mark.parametrize("strategy", [*STRATEGIES, "distill"])
def test_a_training_that_is_killed_at_random_moments_ends_with_the_same_weights(
    strategy: str, small_template: Network, shapes: Prepared, tmp_path: Path
) -> None:
    save_teacher(small_template, shapes.labels, tmp_path / "teacher")
    assert (tmp_path / "teacher" / "train" / TENSORS).exists()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    began = time.monotonic()
    assert os.waitpid(start(small_template, shapes, strategy, whole), 0)[1] == 0
    seconds = time.monotonic() - began
    expected = torch.load(whole / "weights.pth", weights_only=True)

    rng, kills, trainings = random.Random(strategy), 0, 0
    while kills < KILLS or not trainings:
        killed.mkdir(exist_ok=True)
        pid = start(small_template, shapes, strategy, killed)
        time.sleep(rng.uniform(0, seconds / 2))
        if kills < KILLS and os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
            kills += 1
            continue
        with contextlib.suppress(ChildProcessError):  # it has ended already
            assert os.waitpid(pid, 0)[1] == 0
        weights = torch.load(killed / "weights.pth", weights_only=True)
        assert [name for name in expected if not torch.equal(expected[name], weights[name])] == []
        trainings += 1
        shutil.rmtree(killed)
    assert kills >= KILLS
