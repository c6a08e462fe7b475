"""What a `weights` setting means, without loading anything; free of torch."""

from pathlib import Path

from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import WeightsError


def is_file(weights: str) -> bool:
    """Whether a `weights` setting names a file."""
    return Path(weights).suffix in (".pth", ".pt", ".safetensors")


def weights_identity(weights: str) -> str:
    """What a `weights` setting stands for, as part of a step's key: the file's content, or the name."""
    if not is_file(weights):
        return weights
    try:
        return file_digest(Path(weights))
    except OSError as error:
        raise WeightsError(f"weights {weights}: {error.strerror}; name a file that is there") from error
