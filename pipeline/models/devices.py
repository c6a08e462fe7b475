"""Which processor does the work, and how tensors get there."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from edgeline.serve.errors import ConfigError, TrainingError
from edgeline.serve.runtime.cpu import usable_cores


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`, and use as many threads as this process has cores.

    Raises:
        ConfigError: `cuda` where there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, and PyTorch sees no GPU here; take auto or cpu")
    torch.set_num_threads(usable_cores())
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> str:
    """Name the device for people: `CPU, 2 threads` or the GPU's name and its precision."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}, mixed precision"
    return f"CPU, {torch.get_num_threads()} threads"


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision on a GPU; nothing on a CPU, where it would only cost accuracy."""
    return torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else nullcontext()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread for a while: for operations so small that waking a second one costs more than it does.

    Training a linear layer on 2 cores is 10 times faster so, 30 times when something else is running.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor over, through pinned memory and without waiting where the device is a GPU."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


@contextmanager
def memory_errors(batch_size: int, remedy: str = "") -> Iterator[None]:
    """Turn running out of memory into an error that names the remedy.

    Args:
        batch_size: images that were to fit.
        remedy: what to do; by default, lower `train.batch_size`.

    Raises:
        TrainingError: a batch did not fit.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(batch_size, remedy) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _too_large(batch_size, remedy) from error


def _too_large(batch_size: int, remedy: str) -> TrainingError:
    remedy = remedy or f"lower train.batch_size, to {max(2, batch_size // 2)} say"
    return TrainingError(f"a batch of {batch_size} images does not fit into memory; {remedy}", code="out_of_memory")
