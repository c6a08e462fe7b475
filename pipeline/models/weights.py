"""The meaning of a `weights` setting, without loading anything. Does not import torch."""

from pathlib import Path

from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import WeightsError


def is_file(weights: str) -> bool:
    """Whether a `weights` setting names a file."""
    return Path(weights).suffix in (".pth", ".pt", ".safetensors")


def weights_identity(weights: str) -> str:
    """Return what identifies the weights in a step's key: the digest of a file, or the setting itself.

    Raises:
        WeightsError: the file cannot be read.
    """
    if not is_file(weights):
        return weights
    try:
        return file_digest(Path(weights))
    except OSError as error:
        raise WeightsError(f"weights {weights}: {error.strerror}; name an existing file") from error
