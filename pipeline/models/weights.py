"""What identifies the weights and teachers of a configuration, without loading anything. Does not import torch."""

import os
import re
from pathlib import Path

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.atomic_files import digest_of, file_digest
from edgeline.pipeline.sources.file_walk import read_tree
from edgeline.serve.errors import ConfigError, WeightsError

TENSORS = "checkpoint.safetensors"
"""File of a training with the network's tensors."""
NAME = re.compile(r"imagenet|none|[A-Z][A-Z0-9_]*")
"""torchvision's names of weights, such as `IMAGENET1K_V1`, are in capital letters."""


def is_file(weights: str) -> bool:
    """Whether a `weights` setting names a file: everything but a name of weights, whatever its extension."""
    return NAME.fullmatch(weights) is None


def weights_identity(weights: str) -> str:
    """Return what identifies the weights in a step's key: the digest of a file, or the setting itself.

    Raises:
        WeightsError: the file cannot be read.
    """
    if not is_file(weights):
        return weights
    try:
        return file_digest(Path(weights))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"weights {weights}: {reason}; use imagenet, none, or the path of an existing file") from error


def external_files(config: PipelineConfig) -> dict[str, str]:
    """Return what identifies the files outside of the data that training reads, for its key.

    Photos without labels are identified by name, size and time of change, because reading them all would take long.

    Raises:
        WeightsError: the weights cannot be read.
        ConfigError: the folder of a teacher contains no checkpoint.
        DataError: the folder of photos without labels cannot be read.
    """
    found = {"weights": weights_identity(config.weights)}
    found |= {f"teacher {teacher}": teacher_identity(teacher) for teacher in config.train.teacher}
    if config.train.unlabeled:
        tree = read_tree(os.path.realpath(config.train.unlabeled))
        status = [os.stat(os.path.join(tree.root, name)) for name in tree.files]
        found["unlabeled"] = digest_of(
            [[name, file.st_size, file.st_mtime_ns] for name, file in zip(tree.files, status, strict=True)]
        )
    return found


def teacher_identity(teacher: str) -> str:
    """Return what identifies a teacher in a step's key: the digest of a run's checkpoint, or the name of a backbone.

    Raises:
        ConfigError: the folder of the run contains no checkpoint.
    """
    folder = teacher_folder(teacher)
    return teacher if folder is None else file_digest(folder / TENSORS)


def teacher_folder(teacher: str) -> Path | None:
    """Return the folder of the checkpoint that a `teacher` setting refers to; None for a backbone's name.

    Raises:
        ConfigError: the folder contains no checkpoint.
    """
    path = Path(teacher)
    if not path.is_dir() and len(path.parts) == 1:
        return None
    for folder in (path / "train", path):
        if (folder / TENSORS).is_file():
            return folder
    raise ConfigError(
        f"train.teacher: {teacher} contains no trained network; expected the folder of a trained run, or a backbone's name"
    )
