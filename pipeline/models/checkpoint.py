"""A trained network on disk: tensors in safetensors, everything else in JSON, no pickle.

`checkpoint.safetensors` holds the whole network, head and backbone. `checkpoint.json` holds what is needed to rebuild it and
to prepare its input.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.models.weights import TENSORS
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.serve.errors import ManifestError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec

SETTINGS = "checkpoint.json"
CALIBRATION = "calibration.npz"
"""Logits of images from weights that were not trained on them, which `evaluate` fits the temperature on."""
OUT_OF_FOLD = "out_of_fold.npz"
"""The same for all training and validation images, from heads on the frozen backbone; absent if there are no such heads."""

FROZEN_BACKBONE = frozenset({"head", "few-shot"})
"""Training strategies that leave the backbone as it is."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a trained network is, and how it was trained."""

    model: str
    weights: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    dropout: float
    strategy: str
    seed: int
    device: str
    history: tuple[dict[str, float], ...]
    """Per epoch: training and validation loss, validation accuracy."""
    best_epoch: int
    """The epoch with the best validation loss, counted from 1."""
    versions: dict[str, str]

    @property
    def has_frozen_backbone(self) -> bool:
        """Whether only the head was trained, so that what is computed from the backbone is worth caching for the next run."""
        return self.strategy in FROZEN_BACKBONE


def save_checkpoint(folder: Path, network: Network, checkpoint: Checkpoint) -> None:
    """Write the two files of a trained network into a folder."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / TENSORS)
    settings = asdict(checkpoint) | {
        "preprocess": checkpoint.preprocess.to_dict(),
        "preprocess_sha256": checkpoint.preprocess.digest(),
    }
    write_json(folder / SETTINGS, settings)


def read_settings(folder: Path) -> Checkpoint:
    """Read `checkpoint.json`, without touching the tensors.

    Raises:
        TrainingError: the file is missing or damaged, or its preprocessing is not the one it was trained with.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        spec = PreprocessSpec.from_dict(settings["preprocess"])
        expected = settings.pop("preprocess_sha256")
        for name in ("labels", "history"):
            settings[name] = tuple(settings[name])
        checkpoint = Checkpoint(**settings | {"preprocess": spec})
    except (OSError, ValueError, KeyError, TypeError, ManifestError) as error:
        raise TrainingError(f"{folder} has no valid checkpoint ({error}); train again", code="checkpoint_mismatch") from error
    if spec.digest() != expected:
        raise TrainingError(
            f"{folder / SETTINGS}: its preprocessing ({spec.digest()[:12]}) is not the one that the network was trained with "
            f"({expected[:12]}); train again",
            code="checkpoint_mismatch",
        )
    return checkpoint


def load_checkpoint(folder: Path) -> tuple[Network, Checkpoint]:
    """Load a trained network, in evaluation mode, on the CPU.

    Raises:
        TrainingError: the files are missing, damaged, or of another network.
    """
    checkpoint = read_settings(folder)
    network, _ = build(checkpoint.model, "none", classes=len(checkpoint.labels), dropout=checkpoint.dropout)
    try:
        network.load_state_dict(load_file(folder / TENSORS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{folder / TENSORS} does not fit {checkpoint.model}: {reason}", code="checkpoint_mismatch"
        ) from error
    return network.to(memory_format=torch.channels_last).eval(), checkpoint
