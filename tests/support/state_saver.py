"""Saves the state of a small training in a separate process, with a fault at each system call in turn.

    python state_saver.py FOLDER        prints what each fault left, as JSON

The faults are those of `publisher.py`: `kill`, `EIO` and `ENOSPC`. For each call, a folder has the states after the first and
the second epoch; a child process saves the third with the fault at that call; then training resumes, saves the next epoch, and
resumes again.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from edgeline.pipeline.training.fine_tuning.resume import TrainingState
from tests.support.publisher import in_child, plant


def new_state() -> TrainingState:
    network = torch.nn.Linear(2, 2)
    return TrainingState(network, torch.optim.AdamW(network.parameters()), torch.amp.GradScaler("cpu", enabled=False), "CPU")


def save_epochs(folder: Path, count: int) -> None:
    """Resume, and save that many further epochs; each sets every weight to its number."""
    state = new_state()
    state.restore(folder)
    for _ in range(count):
        state.history.add(1.0, 1.0, 1.0)
        with torch.no_grad():
            state.network.weight.fill_(len(state.history.epochs))  # type: ignore[operator]
        state.save(folder)


def resumed(folder: Path) -> list[int]:
    """The number of epochs in the state that training resumes from, and the number in its weights."""
    state = new_state()
    state.restore(folder)
    return [len(state.history.epochs), int(state.network.weight[0, 0].item())]  # type: ignore[index]


def main(fault: str, root: Path) -> list[dict[str, Any]]:
    # A killed process loses nothing that the kernel has accepted, so flushing is not needed here.
    os.fsync = lambda descriptor: sys.audit("os.fsync", descriptor)
    base = root / "base"
    base.mkdir(parents=True)
    save_epochs(base, 2)
    found: list[dict[str, Any]] = []
    for at in range(1, 100):
        folder = root / str(at) / "train"
        shutil.copytree(base, folder)

        def save_badly(folder: Path = folder, at: int = at) -> None:
            state = new_state()
            state.restore(folder)
            plant(fault, at, folder)
            state.history.add(1.0, 1.0, 1.0)
            with torch.no_grad():
                state.network.weight.fill_(3)  # type: ignore[operator]
            state.save(folder)

        outcome = in_child(save_badly, root / "outcome")
        if not (call := folder.parent / "call").exists():
            return found
        entry = {"call": call.read_text(), "outcome": outcome, "resumed": resumed(folder)}
        save_epochs(folder, 1)
        found.append(entry | {"then": resumed(folder)})
    raise AssertionError("it never ends")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({fault: main(fault, Path(sys.argv[1], fault)) for fault in ("kill", "EIO", "ENOSPC")}))
