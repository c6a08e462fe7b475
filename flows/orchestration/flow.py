"""The line as a Prefect flow: the same steps in the same order as `flows.steps`, each one a task.

This is what a deployment runs (`flows.orchestration.flow.edgeline`), and what `edgeline run` runs unless told not to. Its
parameter is the whole configuration, so Prefect's form shows every setting, and its API refuses what the configuration would
refuse.
"""

import logging
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.context import FlowRunContext

from edgeline.flows.orchestration.report import report
from edgeline.flows.orchestration.tasks import AFTER_PREPARE, prepare
from edgeline.flows.steps import run_pipeline
from edgeline.pipeline.config import PipelineConfig, parse_config
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import ConfigError, EdgelineError


@flow(name="edgeline", flow_run_name="{config.artifact_name}")
def edgeline(config: PipelineConfig) -> tuple[Run, list[StepResult]]:
    """Run the line: prepare, train, evaluate, export, make variants, verify, publish.

    Args:
        config: what is asked for.

    Returns:
        The run, and what each step left behind, `publish` last: its folder is the artifact.

    Raises:
        EdgelineError: a step failed; the ones before it keep their results.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(errors_in_one_line)  # the same one again is not added
    _check(config)
    log = get_run_logger()

    def call_prepare(config: PipelineConfig) -> tuple[Run, StepResult]:
        run, result = prepare(config).result()
        log.info("%s", _told(result))
        return run, result

    def call(name: str, run: Run) -> StepResult:
        result = AFTER_PREPARE[name](run).result()
        log.info("%s", _told(result))
        return result

    run, steps = run_pipeline(config, call_prepare=call_prepare, call=call)
    report(run, steps)
    return run, steps


def errors_in_one_line(record: logging.LogRecord) -> bool:
    """A log filter: an error that a person can act on says all in its message, and loses its traceback here."""
    if record.exc_info and isinstance(record.exc_info[1], EdgelineError):
        record.exc_info = record.exc_text = None
    return True


def _check(config: PipelineConfig) -> None:
    """Refuse what the schema of the parameters cannot express."""
    parse_config(config.model_dump())
    context = FlowRunContext.get()
    deployed = context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
    if deployed and not Path(config.artifacts).is_absolute():
        raise ConfigError(
            f"artifacts is {config.artifacts!r}, which a worker would look for in a folder that it removes afterwards; "
            "give the deployment an absolute path"
        )


def _told(result: StepResult) -> str:
    return f"{result.name}: {'reused' if result.reused else f'done in {result.seconds:.1f} s'}: {result.folder}"
