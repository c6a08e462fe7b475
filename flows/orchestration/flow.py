"""The pipeline as a Prefect flow: the steps of `flows.steps` in the same order, each one a task of the same name.

A deployment runs this flow (`flows.orchestration.flow.edgeline`), and so does `edgeline run` without `--no-prefect`. Its one
parameter is the whole configuration, so Prefect's form shows every setting and its API validates them: a new setting of
`pipeline.config` needs no change here.

Prefect's cache is off (`NO_CACHE`): a step recognizes its own result by content within milliseconds and checks every file of
it, while a path cached in Prefect's database could name a folder that no longer exists. A task whose result was reused ends
in the state `Cached`.

Only publishing is retried, because it writes to a store that may be on a network. The other steps would fail in the same way
again, and an interrupted run resumes when it is started the next time.

A task is called with the results that it reads, because Prefect draws its graph from them. The run, which `prepare` returns
too, is quoted: otherwise every task would hang from `prepare`.
"""

import errno
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Completed
from prefect.utilities.annotations import quote

from edgeline.export.promotion.decision import Decision
from edgeline.flows import steps
from edgeline.flows.operations import retrain as retraining
from edgeline.flows.operations.retrain import Check, retrained_lines
from edgeline.flows.orchestration.crashes.record import record_process
from edgeline.flows.orchestration.report import report, report_decision
from edgeline.flows.step_lines import step_lines
from edgeline.pipeline.config import PipelineConfig, parse_config
from edgeline.pipeline.data.prepare import prepare as prepare_samples
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.artifact.channels import Event
from edgeline.serve.errors import ConfigError, EdgelineError, StoreError

PERMANENT = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}
"""System errors that waiting does not fix."""
DESCRIPTIONS = {
    "train": "Train a checkpoint.",
    "evaluate": "Evaluate and calibrate the checkpoint.",
    "export": "Export the checkpoint to one ONNX file.",
    "variants": "Make the int8 and other variants.",
    "verify": "Compare the ONNX file and its variants with PyTorch.",
    "publish": "Publish the verified artifact to the store.",
}


def is_temporary(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry after a failure: the store or the disk failed, and not for a permanent reason."""
    error = state.data
    cause = error.__cause__ if isinstance(error, StoreError) else error
    if isinstance(cause, OSError):
        return cause.errno not in PERMANENT
    return isinstance(error, StoreError)


@task(task_run_name="prepare", cache_policy=NO_CACHE)
def prepare(config: PipelineConfig) -> State[tuple[Run, StepResult]]:
    """Find, check, deduplicate and split the images; creates the run that the other tasks take."""
    run, result = prepare_samples(config)
    return _completed(result, (run, result))


def step_task(name: str) -> Task[[Run, list[StepResult]], State[StepResult]]:
    """The task that executes a step of `flows.steps`, given the run and the results that `nearest_results` names."""

    def execute(run: Run, results: list[StepResult]) -> State[StepResult]:
        result = steps.execute(name, run)
        return _completed(result, result)

    execute.__name__ = execute.__qualname__ = name  # Prefect counts a task's runs by the qualified name
    return Task(execute, name=name, task_run_name=name, description=DESCRIPTIONS[name], cache_policy=NO_CACHE)


TASKS = {name: step_task(name) for name in steps.STEP_NAMES if name != "prepare"}
"""A task for each step after `prepare`, in order."""
TASKS["publish"] = TASKS["publish"].with_options(retries=3, retry_delay_seconds=[1, 5, 20], retry_condition_fn=is_temporary)


@flow(name="edgeline", flow_run_name="{config.artifact_name}")
def edgeline(config: PipelineConfig) -> tuple[Run, list[StepResult]]:
    """Run the pipeline: prepare, train, evaluate, export, make variants, verify, publish.

    Args:
        config: the settings of the run.

    Returns:
        The run and the result of each step, `publish` last: its folder is the artifact.

    Raises:
        EdgelineError: a step failed; the results of the steps before it are kept.
    """
    set_up(config.artifacts)
    parse_config(config.model_dump())  # what the schema of the parameters cannot express
    return _run_steps(config, {})


@task(name="compare", task_run_name="compare", cache_policy=NO_CACHE)
def compare(run: Run, in_use: Path, published: StepResult) -> State[Decision]:
    """Compare the new version with the one in use."""
    from edgeline.export.promotion.challenge import compare

    decision = compare(run, in_use, published.folder)
    return Completed(message=decision.reason, data=decision)


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE)
def promote(decision: Decision, in_use: Path, new: Path) -> State[Event]:
    """Promote the new version to `stable`, or record why not."""
    event = retraining.record_decision(decision, in_use, new)
    return Completed(name="Promoted" if decision.promoted else "Not promoted", message=decision.reason, data=event)


@flow(name="edgeline-retrain", flow_run_name="{config.artifact_name}")
def retrain(
    config: PipelineConfig, accepted: tuple[Check, ...] = (), drifted: tuple[str, ...] = (), inbox: Path | None = None
) -> State[retraining.Retrained]:
    """Run the pipeline if the data has changed, and promote the new version to `stable` if a test shows that it is not worse.

    Args:
        config: the settings of the run; `promote` has the margin and the confidence.
        accepted: checks of the new photos that are to be ignored.
        drifted: what has drifted, if that is why this runs. Without new labeled photos it then ends as `Waiting for labels`.
        inbox: folder of photos that wait for labels.

    Returns:
        What was done.

    Raises:
        EdgelineError: the new photos look wrong, or a step failed; the version in use stays.
    """
    set_up(config.artifacts)
    parse_config(config.model_dump())
    results: dict[str, StepResult] = {}

    def decide(run: Run, in_use: Path, new: Path) -> tuple[Decision, Event]:
        decision = compare(_unlinked(run), in_use, results["publish"]).result()
        return decision, promote(decision, in_use, new).result()

    done = retraining.retrain(
        config, accepted=accepted, inbox=inbox, run_steps=lambda settings: _run_steps(settings, results), decide=decide
    )
    get_run_logger().info("%s", "\n".join(retrained_lines(done, config.store / config.artifact_name)))
    report_decision(config.artifact_name, done)
    if drifted and not done.trained and done.decision is None:
        waits = done.waiting or f"no photos with a new label since version {done.version}"
        return Completed(name="Waiting for labels", message=f"{', '.join(drifted)} drifted; {waits}", data=done)
    return Completed(message=done.event.why, data=done)


def nearest_results(name: str) -> list[str]:
    """The steps whose results a step reads, without those that the others of them were made from."""
    needed = steps.DEPENDS[name]
    return [each for each in needed if not any(each in steps.DEPENDS[other] for other in needed)]


def _unlinked(run: Run) -> Any:
    """The run as an argument of a task, which does not hang from `prepare` because of it."""
    return quote(run)


def _run_steps(config: PipelineConfig, done: dict[str, StepResult]) -> tuple[Run, list[StepResult]]:
    """Run every step as a task of the current flow, add their results to `done`, and report what they found."""
    log = get_run_logger()

    def call_prepare(config: PipelineConfig) -> tuple[Run, StepResult]:
        run, done["prepare"] = prepare(config).result()
        log.info("%s", _message(done["prepare"]))
        return run, done["prepare"]

    def call_step(name: str, run: Run) -> StepResult:
        done[name] = TASKS[name](_unlinked(run), [done[each] for each in nearest_results(name)]).result()
        log.info("%s", _message(done[name]))
        return done[name]

    run, results = steps.run_pipeline(config, call_prepare=call_prepare, call_step=call_step)
    report(run, results)
    return run, results


def set_up(artifacts: str | Path) -> None:
    """Prepare the current flow run, and check what concerns the worker that it runs on.

    Args:
        artifacts: folder of runs and the store.

    Raises:
        ConfigError: the folder is relative to the worker's, or the worker has another version of edgeline.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(drop_traceback_of_user_errors)  # adding it twice has no effect
    record_process()
    context = FlowRunContext.get()
    flow_run = None if context is None else context.flow_run
    if flow_run is None or flow_run.deployment_id is None:
        return
    ours, deployed = version("edgeline"), flow_run.deployment_version
    if deployed and deployed != ours:
        raise ConfigError(
            f"this worker has edgeline {ours}, the deployment was made with edgeline {deployed}: install {deployed} on the "
            "worker, or repeat `edgeline deploy` with the worker's version",
            code="worker_version",
        )
    if not Path(artifacts).is_absolute():
        raise ConfigError(
            f"artifacts is {str(artifacts)!r}, which a worker would resolve in a temporary folder; give the deployment an "
            "absolute path"
        )


def drop_traceback_of_user_errors(record: logging.LogRecord) -> bool:
    """A log filter: the message of an error that a person can act on is complete without its traceback."""
    if record.exc_info and isinstance(record.exc_info[1], EdgelineError):
        record.exc_info = record.exc_text = None
    return True


def _message(result: StepResult) -> str:
    done = f"{result.name}: {'reused' if result.reused else f'done in {result.seconds:.1f} s'}: {result.folder}"
    return "\n".join([done, *step_lines(result)])


def _completed(result: StepResult, data: Any) -> State[Any]:
    if result.reused:
        return Completed(name="Cached", message="Recognized by content; every file is unchanged.", data=data)
    return Completed(message=f"Done in {result.seconds:.1f} s.", data=data)
