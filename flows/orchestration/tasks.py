"""The steps of the line as Prefect tasks: each is a call of the line's own function, under the step's name.

Prefect's cache is off for them (`NO_CACHE`). A step's result is a folder addressed by its content, and the step itself
finds it within milliseconds and checks every file in it; a cached path in Prefect's database would be a second memory that
may name a folder that is gone. A step that found its result says so by its state, `Cached`, which the UI shows.

Only publishing is retried: it writes to a store that may be a network's. What the other steps raise is the same the second
time, and what a passing fault stops the next run resumes.
"""

import errno
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from edgeline.flows import steps as line
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.data.prepare import prepare as prepare_samples
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import StoreError

LASTING = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
"""What waiting does not mend."""


def may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed attempt is worth another: the store or the disk failed, and not for a reason that lasts."""
    error = state.data
    cause = error.__cause__ if isinstance(error, StoreError) else error
    if isinstance(cause, OSError):
        return cause.errno not in LASTING
    return isinstance(error, StoreError)


@task(task_run_name="prepare", cache_policy=NO_CACHE)
def prepare(config: PipelineConfig) -> State[tuple[Run, StepResult]]:
    """Find, open, compare and split the images; makes the run that the other tasks take."""
    run, result = prepare_samples(config)
    return _state(result, (run, result))


@task(task_run_name="train", cache_policy=NO_CACHE)
def train(run: Run) -> State[StepResult]:
    """Train a checkpoint."""
    return _state(line.AFTER_PREPARE["train"](run))


@task(task_run_name="evaluate", cache_policy=NO_CACHE)
def evaluate(run: Run) -> State[StepResult]:
    """Evaluate and calibrate the checkpoint."""
    return _state(line.AFTER_PREPARE["evaluate"](run))


@task(task_run_name="export", cache_policy=NO_CACHE)
def export(run: Run) -> State[StepResult]:
    """Write the checkpoint as one ONNX file."""
    return _state(line.AFTER_PREPARE["export"](run))


@task(task_run_name="variants", cache_policy=NO_CACHE)
def variants(run: Run) -> State[StepResult]:
    """Make the int8 form and the other variants."""
    return _state(line.AFTER_PREPARE["variants"](run))


@task(task_run_name="verify", cache_policy=NO_CACHE)
def verify(run: Run) -> State[StepResult]:
    """Hold the ONNX file against PyTorch."""
    return _state(line.AFTER_PREPARE["verify"](run))


@task(task_run_name="publish", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[1, 5, 20], retry_condition_fn=may_pass)
def publish(run: Run) -> State[StepResult]:
    """Publish the verified artifact."""
    return _state(line.AFTER_PREPARE["publish"](run))


AFTER_PREPARE = {step.name: step for step in (train, evaluate, export, variants, verify, publish)}


def _state(result: StepResult, value: Any = None) -> State[Any]:
    data = result if value is None else value
    if result.reused:
        return Completed(name="Cached", message="Found by its content, every file of it unchanged.", data=data)
    return Completed(message=f"Done in {result.seconds:.1f} s.", data=data)
