"""The device that training and evaluation compute on, and what depends on it: threads, precision, batch size, memory."""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from edgeline.serve.errors import ConfigError, TrainingError
from edgeline.serve.runtime.cpu import usable_cores

CPU_BATCH = 8
"""Images in an inference batch on a CPU. Fastest: the layers' outputs for more images do not fit into the CPU's cache."""
GPU_BATCH = 256
TRACING = threading.Lock()
"""Held while PyTorch traces a network, and by a step that runs networks beside it: the tracer replaces functions of modules for
every thread."""


def choose_device(requested: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`, and set torch's threads to the cores available to this process.

    Raises:
        ConfigError: `cuda` was requested and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device is cuda, but PyTorch finds no GPU; use auto or cpu")
    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))  # of torchrun
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device, processes: int = 1) -> str:
    """Describe a device for people: `CPU, 2 threads`, or the GPU's name and precision; and how many processes used one each."""
    if device.type == "cuda":
        one = f"GPU {torch.cuda.get_device_name(device)}, mixed precision"
    else:
        one = f"CPU, {torch.get_num_threads()} threads"
    return one if processes == 1 else f"{processes} processes, {one} each"


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[None]:
    """Mixed precision: `auto` is float16 on a GPU, and nothing on a CPU, where it would only cost accuracy.

    Args:
        device: that the block computes on.
        precision: `auto`, `float32`, `bf16` or `fp16`.
    """
    if precision == "float32" or (precision == "auto" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc reuse the memory of freed tensors instead of returning it to the system after every layer.

    Otherwise each layer's output is fresh memory that the kernel fills with zeros, page by page: a third of the CPU time of
    an EfficientNet-Lite0 on 224 px, and several times that on a busy virtual machine. The values that the network computes
    do not change. On other C libraries nothing happens.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread within the block, for operations so small that a second thread costs more than it saves.

    Training a linear layer on 2 cores is 10 times faster with one thread, and 30 times on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Have NumPy and SciPy multiply and decompose matrices on one thread within the block, or within a decorated function.

    Waiting threads of OpenBLAS spin: on a busy machine with 2 cores, decompositions of 1,000 x 1,000 take 20 times as long
    with two threads, and 17 times the CPU time. With one, the bits do not depend on the number of cores either.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU through pinned memory and asynchronously."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


@contextmanager
def memory_errors(batch_size: int, remedy: str = "") -> Iterator[None]:
    """Turn running out of memory into an error that names a remedy.

    Args:
        batch_size: images in a batch.
        remedy: what to do; by default, lower `train.batch_size`.

    Raises:
        TrainingError: a batch does not fit into memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise _out_of_memory(batch_size, remedy, error) from error


def is_memory_error(error: BaseException) -> bool:
    """Whether an operation failed because there was not enough memory, on a GPU or a CPU."""
    failed = ("can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in failed)


def _out_of_memory(batch_size: int, remedy: str, error: BaseException) -> TrainingError:
    remedy = remedy or f"lower train.batch_size, for example to {max(2, batch_size // 2)}"
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return TrainingError(f"a batch of {batch_size} images does not fit into memory ({reason}); {remedy}", code="out_of_memory")
