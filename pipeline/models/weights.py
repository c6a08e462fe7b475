"""The meaning of a `weights` setting, without loading anything. Does not import torch."""

import re
from pathlib import Path

from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import WeightsError

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
