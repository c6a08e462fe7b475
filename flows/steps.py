"""The pipeline: its steps in order, one table. No Prefect here, and no torch until a step has work to do."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.data.prepare import find_run, prepare
from edgeline.pipeline.models.weights import weights_identity
from edgeline.pipeline.runs.receipts import is_current
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.pipeline.runs.step import Step
from edgeline.serve.artifact.reader import versions

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
RUNTIMES = (*LIBRARIES, "onnxruntime", "onnx")

STEPS = (
    Step(
        name="train",
        build="edgeline.pipeline.training.train:build_checkpoint",
        reads=("prepare",),
        settings=("model", "seed", "preprocess", "train"),
        packages=LIBRARIES,
        external=lambda config: {"weights": weights_identity(config.weights)},
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
        reads=("train", "evaluate"),
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
        settings=("verify", "export.require_variants"),
        packages=RUNTIMES,
    ),
)
"""Between `prepare`, which makes the run, and `publish`, which writes to the store."""


def step_named(name: str) -> Step:
    """The entry of the table with this name."""
    return next(step for step in STEPS if step.name == name)


def publish(run: Run) -> StepResult:
    """Publish the verified artifact to the store."""
    from edgeline.export.publishing.publish import publish as publish_run

    start = time.monotonic()
    return replace(publish_run(run), seconds=time.monotonic() - start)


AFTER_PREPARE: Mapping[str, Callable[[Run], StepResult]] = {**{step.name: step.execute for step in STEPS}, "publish": publish}


def is_up_to_date(config: PipelineConfig) -> bool:
    """Whether every step's result, the published artifact too, is there already for this configuration and data."""
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
    call: Callable[[str, Run], StepResult] = lambda name, run: AFTER_PREPARE[name](run),
) -> tuple[Run, list[StepResult]]:
    """Run every step in order.

    Args:
        config: what is asked for.
        call_prepare: runs the first step; the Prefect flow passes its task.
        call: runs a later step by name; likewise.

    Returns:
        The run, and what each step left behind, `publish` last: its folder is the artifact.

    Raises:
        EdgelineError: a step failed; the ones before it keep their results.
    """
    run, prepared = call_prepare(config)
    return run, [prepared, *(call(name, run) for name in AFTER_PREPARE)]
