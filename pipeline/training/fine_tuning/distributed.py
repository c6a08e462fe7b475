"""Train layers in several processes, one for each GPU, or on several machines (data parallelism).

torchrun starts the processes. Each computes the gradients of its share of every batch, and their sum is what one process would
have computed, but for rounding: batch norms keep their statistics, and the loss is divided by the weights of the whole batch.
The first process alone writes files. `DistributedDataParallel` is not used, because it fixes which parameters are trained when
it is built, while stages are unfrozen during the training, and because a batch that one process has to split is no concern of
the others here.

Without torchrun every function does what is right for a single process.

Shapes: B images in a batch.
"""

import contextlib
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from edgeline.pipeline.train_config import TrainConfig
from edgeline.pipeline.training.context import Strategy, TrainingContext, TrainingResult
from edgeline.serve.errors import EdgelineError, TrainingError
from edgeline.serve.runtime.cpu import usable_cores

T = TypeVar("T")
Rows = TypeVar("Rows", np.ndarray, Tensor)
LOG = logging.getLogger(__name__)
EXPECTED = "EDGELINE_PROCESSES"
"""Environment variable with the number of processes that take part."""


def process_count(config: TrainConfig, device: torch.device) -> int:
    """Return how many processes train: the configured number, or one for each GPU for strategies that train layers."""
    if config.processes != "auto":
        return config.processes
    if device.type != "cuda" or config.strategy in ("head", "few-shot", "scratch"):
        return 1
    return torch.cuda.device_count()


def launch(processes: int, module: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a module in several processes, and wait for them.

    Several machines take part if torchrun's environment variables describe them (`PET_NNODES`, `PET_RDZV_ENDPOINT` and so on).

    Args:
        processes: on this machine.
        module: started as `python -m`; its code is within `worker`.
        arguments: of its command line.
        folder: where a process that fails leaves its error.

    Raises:
        EdgelineError: what the first process that failed has raised.
        TrainingError: a process ended otherwise.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    nodes = int(os.environ.get("PET_NNODES", "1"))
    # One machine needs no address that another one could reach.
    options = [f"--nproc-per-node={processes}", *(["--standalone"] if nodes == 1 else [])]
    environment = {
        EXPECTED: str(processes * nodes),
        "OMP_NUM_THREADS": str(max(1, usable_cores() // processes)),
    }
    for logger in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # they log a failure in twenty lines, and we in one
    with _environment(environment):
        try:
            run.run(run.parse_args([*options, "-m", module, *arguments]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            raise _first_error(folder, error) from error


@contextlib.contextmanager
def worker(folder: Path | None) -> Iterator[Path]:
    """Join the processes that torchrun has started, until the end of the block.

    Args:
        folder: the step's folder, which the first process gives to all.

    Raises:
        TrainingError: the number of processes is not the expected one.
    """
    _end_with_parent()
    if os.environ["RANK"] != "0":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # only the first process shows its progress
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait while the first process computes features; torchrun notices a process that has ended.
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=7))
    try:
        given: Path | None = everywhere(lambda: folder)
        if given is None:
            raise TrainingError("the first process was started without the folder to write to; start it with `edgeline train`")
        folder = given
        expected = everywhere(lambda: os.environ.get(EXPECTED, ""))
        if expected != str(world_size()):
            raise TrainingError(
                f"{world_size()} processes train together, expected {expected}: start as many on every machine",
                code="wrong_world_size",
            )
        yield folder
    except EdgelineError as error:
        _write_error(folder, error.code, str(error))
        raise SystemExit(1) from error
    except Exception as error:
        _write_error(folder, "", traceback.format_exc())
        raise SystemExit(1) from error
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(rows: Rows) -> Rows:
    """The part of a batch, or of any rows, that this process computes."""
    return rows[rank() :: world_size()]


def wait_for_all() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        distributed.barrier()


def everywhere(compute: Callable[[], T]) -> T:
    """Compute a value in the first process, and return it in all."""
    if world_size() == 1:
        return compute()
    values: list[Any] = [compute() if rank() == 0 else None]
    distributed.broadcast_object_list(values)
    result: T = values[0]
    return result


def fit_once(fit: Strategy, context: TrainingContext) -> TrainingResult:
    """Train in the first process, and give its result and weights to all."""
    result = everywhere(lambda: fit(context))
    if world_size() > 1:
        context.network.to(context.device)
        for tensor in context.network.state_dict().values():
            distributed.broadcast(tensor, 0)
    return result


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sum over all processes, in one exchange. They are of one type and on one device."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    totals = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, total in zip(tensors, totals, strict=True):
        tensor.copy_(total.view_as(tensor))


def add_up_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> None:
    """Replace the gradients of trainable parameters, and a loss, by their sums over all processes."""
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # this process had no image of the batch
            parameter.grad = torch.zeros_like(parameter)
    add_up([*(parameter.grad for parameter in trained if parameter.grad is not None), loss])


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if name not in os.environ})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def _end_with_parent() -> None:
    """End this process when torchrun's own process is gone, even if it was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_error(folder: Path | None, code: str, text: str) -> None:
    if folder is not None:
        (folder / f"error-{rank()}.json").write_text(json.dumps({"code": code, "text": text}))


def _first_error(folder: Path, error: Exception) -> EdgelineError:
    """The error that a process has left in the folder. A process that only noticed the end of another one has left none."""
    errors = {path: json.loads(path.read_text()) for path in sorted(folder.glob("error-*.json"))}
    for path, found in errors.items():
        path.unlink()
        if not found["code"]:
            LOG.error("%s", found["text"])
    for found in errors.values():
        if found["code"]:
            return EdgelineError(found["text"], code=found["code"])
    reason = " ".join(str(error).split())[:200]
    return TrainingError(f"a training process ended unexpectedly ({reason}); see the log above", code="process_ended")
