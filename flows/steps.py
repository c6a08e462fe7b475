"""The pipeline: a table of its steps in order with what each depends on, and the functions that execute them.

Neither Prefect nor PyTorch is imported here: a module that builds a step is imported only when the step has work to do.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from edgeline.flows.side_by_side import run_side_by_side
from edgeline.flows.step_lines import step_lines
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.data.prepare import find_run, prepare
from edgeline.pipeline.models.weights import external_files
from edgeline.pipeline.runs.receipts import is_current
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.pipeline.runs.run_log import recorded
from edgeline.pipeline.runs.step import Step
from edgeline.serve.artifact.reader import versions

LOG = logging.getLogger("edgeline.steps")
"""Logs what each step found, as information: a program decides whether and where to show it."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
RUNTIMES = (*LIBRARIES, "onnxruntime", "onnx")

STEPS = (
    Step(
        name="train",
        build="edgeline.pipeline.training.train:build_checkpoint",
        reads=("prepare",),
        settings=("model", "seed", "preprocess", "train"),
        packages=LIBRARIES,
        external=external_files,
    ),
    Step(
        name="evaluate",
        build="edgeline.pipeline.evaluation.evaluate:build_evaluation",
        reads=("prepare", "train"),
        settings=("evaluate",),
        packages=(*LIBRARIES, "scipy", "matplotlib"),
    ),
    Step(
        name="export",
        build="edgeline.export.graph.to_onnx:build_export",
        reads=("train",),
        settings=("export.opset", "export.min_runtime", "export.explain"),
        packages=(*LIBRARIES, "onnx", "onnxscript"),
    ),
    Step(
        name="variants",
        build="edgeline.export.variants:build_variants",
        reads=("prepare", "train", "export"),
        settings=("export", "verify.int8", "seed", "train.strategy", "train.views", "train.augment"),
        packages=RUNTIMES,
    ),
    Step(
        name="verify",
        build="edgeline.export.verification.verify:build_verification",
        reads=("prepare", "train", "evaluate", "export", "variants"),
        settings=("verify", "export.require_variants", "export.max_drop"),
        packages=RUNTIMES,
    ),
)
"""The cached steps, in order: those between `prepare`, which creates the run, and `publish`, which writes to the store."""
DEPENDS: Mapping[str, tuple[str, ...]] = {
    "prepare": (),
    **{step.name: step.reads for step in STEPS},
    "publish": ("prepare", *(step.name for step in STEPS)),
}
"""All steps, in order, with those that each depends on. Others may run beside it."""
STEP_NAMES = tuple(DEPENDS)
"""All steps, in order."""


def step_named(name: str) -> Step:
    """The entry of the table with this name."""
    return next(step for step in STEPS if step.name == name)


def publish(run: Run) -> StepResult:
    """Publish the verified artifact to the store."""
    from edgeline.export.publishing.publish import publish as publish_run

    start = time.monotonic()
    return replace(publish_run(run), seconds=time.monotonic() - start)


def execute(name: str, run: Run) -> StepResult:
    """Execute one step of a run, or find its result.

    Args:
        name: one of `STEP_NAMES` but `prepare`, which creates the run.
        run: with the results of the steps before it.

    Raises:
        EdgelineError: the step failed, or one that it reads has not been executed.
    """
    if name == "publish":
        return publish(run)
    return step_named(name).execute(run)


def is_up_to_date(config: PipelineConfig) -> bool:
    """Whether the result of every step, including the published artifact, exists for this configuration and data."""
    from edgeline.export.publishing.publish import content_digest
    from edgeline.export.publishing.store import find_content

    if not versions(config.store / config.artifact_name):
        return False  # before hashing anything
    run, prepare_key = find_run(config)
    if not is_current(run.step("prepare"), prepare_key):
        return False
    # In order: a key can only be computed from the results before it.
    if not all(is_current(run.step(step.name), step.key(run)) for step in STEPS):
        return False
    return find_content(config.store / config.artifact_name, content_digest(run)) is not None


def run_pipeline(
    config: PipelineConfig,
    *,
    call_prepare: Callable[[PipelineConfig], tuple[Run, StepResult]] = prepare,
    call_step: Callable[[str, Run], StepResult] = execute,
) -> tuple[Run, list[StepResult]]:
    """Run every step after those that it depends on; two that do not depend on each other run side by side.

    Args:
        config: the settings of the run.
        call_prepare: calls the first step; the Prefect flow passes its task.
        call_step: calls a later step by name, in this thread or another; likewise.

    Returns:
        The run and the result of each step, `publish` last: its folder is the artifact.

    Raises:
        EdgelineError: a step failed; the results of the steps before it are kept.
    """
    run, prepared = call_prepare(config)
    _log(prepared)

    def call(name: str) -> StepResult:
        result = call_step(name, run)
        _log(result)
        return result

    with recorded(run):
        results = run_side_by_side({name: set(needed) - {"prepare"} for name, needed in DEPENDS.items() if needed}, call)
    return run, [prepared, *results.values()]


def _log(result: StepResult) -> None:
    for line in step_lines(result):
        LOG.info("%s", line)
