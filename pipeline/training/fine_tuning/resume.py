"""The state of an unfinished training on disk, so that a killed training resumes after its last complete epoch.

Two files: the state after the newest epoch and the one before it. If the newest is damaged, one epoch is trained again
and not all of them.
"""

import hashlib
import io
import logging
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeline.pipeline.runs.atomic_files import replace_file
from edgeline.pipeline.training.history import TrainingHistory

RESUME, PREVIOUS = "resume.pt", "resume.previous.pt"
LOG = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything that an epoch changes."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: str
    """Description of the device that computes now."""
    history: TrainingHistory = field(default_factory=TrainingHistory)
    best: dict[str, Tensor] = field(default_factory=dict)
    """The network's state after the best epoch; empty before the first."""
    devices: list[str] = field(default_factory=list)
    """The devices that have computed so far: a training that is resumed on another one is not bit-identical."""

    def save(self, folder: Path) -> None:
        """Write the state into a folder and keep the one before it."""
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}
        history = self.history
        self.devices = list(dict.fromkeys([*self.devices, self.device]))
        state |= {"best": self.best, "history": history.epochs, "devices": self.devices}
        state |= {"best_epoch": history.best_epoch, "best_loss": history.best_loss}
        if (folder / RESUME).exists():
            os.replace(folder / RESUME, folder / PREVIOUS)
        replace_file(folder / RESUME, partial(_write, state))

    def restore(self, folder: Path) -> None:
        """Load the newest intact state in a folder. Without one, nothing changes."""
        for path in (folder / RESUME, folder / PREVIOUS):
            if not path.exists():
                continue
            state = _read(path)
            if state is None:
                LOG.warning("%s is damaged and was deleted; training resumes from the state before it, if there is one", path)
                path.unlink()
                continue
            for name in ("network", "optimizer", "scaler"):
                getattr(self, name).load_state_dict(state[name])
            self.history = TrainingHistory(state["history"], state["best_epoch"], state["best_loss"])
            self.best, self.devices = state["best"], state["devices"]
            return


def delete_states(folder: Path) -> None:
    """Delete the states in a folder, when training has finished."""
    for name in (RESUME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def _write(state: dict[str, Any], path: Path) -> None:
    payload = io.BytesIO()
    torch.save(state, payload)
    with path.open("wb") as file:
        file.write(payload.getbuffer())
        file.write(hashlib.sha256(payload.getbuffer()).digest())


def _read(path: Path) -> dict[str, Any] | None:
    """Return the state in a file, or None if its digest is wrong: torch.load does not notice changed bytes."""
    data = memoryview(path.read_bytes())
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data[:-32]), weights_only=True, map_location="cpu")
    return state
