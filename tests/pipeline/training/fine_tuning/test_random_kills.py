"""Every strategy that trains layers, killed 20 times at random moments, ends with the weights of an uninterrupted training."""

import copy
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.weights import TENSORS
from edgeline.pipeline.training.train import STRATEGIES as FIT
from tests.support.layer_training import STRATEGIES, config, context, save_teacher

KILLS = 20
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__, "torchvision.models"])


def train(network: Network, prepared: Prepared, strategy: str, folder: Path) -> None:
    """Train, and write the weights to a file that is complete or absent."""
    torch.set_num_threads(1)
    network = copy.deepcopy(network)  # torch passes tensors to a child in shared memory
    teacher = {"teacher": (str(folder.parent / "teacher"),)} if strategy == "distill" else {}
    given = config(strategy, refit=True, epochs=6, **teacher)
    FIT[strategy](context(network, prepared, given, folder))
    torch.save(network.state_dict(), folder / "weights.partial")
    os.replace(folder / "weights.partial", folder / "weights.pth")


def start(network: Network, prepared: Prepared, strategy: str, folder: Path) -> BaseProcess:
    """Train in a child of a process that has imported torch but has never trained.

    A plain fork would not do: torch forbids autograd in a fork of a process that has used it, and
    the tests before this one have.
    """
    process = SERVER.Process(target=train, args=(network, prepared, strategy, folder))
    process.start()
    return process


@pytest.mark.long
@pytest.mark.parametrize("strategy", [*STRATEGIES, "distill"])
def test_a_training_that_is_killed_at_random_moments_ends_with_the_same_weights(
    strategy: str, small_template: Network, shapes: Prepared, tmp_path: Path
) -> None:
    save_teacher(small_template, shapes.labels, tmp_path / "teacher")
    assert (tmp_path / "teacher" / "train" / TENSORS).exists()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    finished = start(small_template, shapes, strategy, whole)
    began = time.monotonic()
    finished.join()
    assert finished.exitcode == 0
    seconds = time.monotonic() - began
    expected = torch.load(whole / "weights.pth", weights_only=True)

    rng, kills, trainings = random.Random(strategy), 0, 0
    while kills < KILLS or not trainings:
        killed.mkdir(exist_ok=True)
        process = start(small_template, shapes, strategy, killed)
        time.sleep(rng.uniform(0, seconds / 2))
        if kills < KILLS:
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.exitcode == 0
        weights = torch.load(killed / "weights.pth", weights_only=True)
        assert [name for name in expected if not torch.equal(expected[name], weights[name])] == []
        trainings += 1
        shutil.rmtree(killed)
    assert kills >= KILLS
