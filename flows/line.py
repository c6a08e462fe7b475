"""The line: its steps in order, each a plain function of a run. No Prefect here, and no torch until a step has work to do.

A step's key covers the results it reads, its settings, its code and the libraries that do its work, so an unchanged step
is recognised within milliseconds.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.config import LineConfig
from pipeline.prepare import find_run, prepare
from pipeline.run import Run, StepResult, do_step
from pipeline.steps import is_current, result_digest, step_key
from pipeline.weights import weights_identity
from serve.artifact import versions

Step = Callable[[Run], StepResult]

PREPROCESSING = ("serve.preprocess", "pipeline.samples")
NETWORK = ("pipeline.backbones", "pipeline.checkpoint", "pipeline.devices")
CONVERTERS = (
    "export.convert_openvino",
    "export.convert_litert",
    "export.convert_executorch",
    "export.convert_coreml",
)
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


def train_key(run: Run) -> str:
    """What the checkpoint depends on."""
    config = run.config
    fit = "pipeline.fit_head" if config.train.strategy == "head" else "pipeline.fit_layers"
    settings = {
        "prepare": result_digest(run.step("prepare")),
        "model": config.model,
        "weights": weights_identity(config.weights),
        "seed": config.seed,
        "preprocess": config.preprocess.model_dump(),
        "train": config.train.model_dump(),
    }
    modules = ("pipeline.train", fit, "pipeline.features", "pipeline.augment", "pipeline.history", "pipeline.hard_set")
    return step_key(settings, (*modules, *NETWORK, *PREPROCESSING), packages=LIBRARIES)


def train(run: Run) -> StepResult:
    """Train a checkpoint on the prepared samples."""

    def build(folder: Path) -> None:
        from pipeline.train import build_checkpoint

        build_checkpoint(run, folder)

    return do_step(run, "train", train_key(run), build)


def evaluate_key(run: Run) -> str:
    """What the evaluation depends on."""
    settings = {"inputs": _results(run, "prepare", "train"), "evaluate": run.config.evaluate.model_dump()}
    modules = ("pipeline.evaluate", "pipeline.metrics", "pipeline.plots", *NETWORK, *PREPROCESSING)
    return step_key(settings, modules, packages=(*LIBRARIES, "scipy", "matplotlib"))


def evaluate(run: Run) -> StepResult:
    """Evaluate the checkpoint on the test split and fit its temperature on validation."""

    def build(folder: Path) -> None:
        from pipeline.evaluate import build_evaluation

        build_evaluation(run, folder)

    return do_step(run, "evaluate", evaluate_key(run), build)


def export_key(run: Run) -> str:
    """What the ONNX file depends on."""
    settings = {"inputs": _results(run, "train", "evaluate"), "opset": run.config.export.opset}
    settings["min_runtime"] = run.config.export.min_runtime
    settings["explain"] = run.config.export.explain
    modules = ("export.to_onnx", "export.evidence", "export.graph", *NETWORK)
    return step_key(settings, modules, packages=(*LIBRARIES, "onnx", "onnxscript"))


def export(run: Run) -> StepResult:
    """Write the checkpoint as one ONNX file."""

    def build(folder: Path) -> None:
        from export.to_onnx import build_export

        build_export(run, folder)

    return do_step(run, "export", export_key(run), build)


def variants_key(run: Run) -> str:
    """What the variants depend on."""
    settings = {
        "inputs": _results(run, "prepare", "train", "export"),
        "export": run.config.export.model_dump(),
        "bars": run.config.verify.int8.model_dump(),
        "seed": run.config.seed,
        "train": run.config.train.model_dump(include={"strategy", "views", "augment"}),
    }
    modules = (
        "export.variants",
        "export.autopilot",
        "export.evidence",
        "export.qat",
        "export.simulate",
        "export.int8",
        "export.formats",
        "export.convert",
        *CONVERTERS,
        "export.environments",
        "export.to_onnx",
        "export.likeness",
        "export.comparison",
        "pipeline.augment",
        "pipeline.features",
        "pipeline.metrics",
        "serve.runtime",
        "serve.provenance",
        *NETWORK,
        *PREPROCESSING,
    )
    return step_key(settings, modules, packages=(*LIBRARIES, "onnxruntime", "onnx"))


def variants(run: Run) -> StepResult:
    """Make the int8 form and the other variants that are asked for."""

    def build(folder: Path) -> None:
        from export.variants import build_variants

        build_variants(run, folder)

    return do_step(run, "variants", variants_key(run), build)


def verify_key(run: Run) -> str:
    """What the verification depends on."""
    settings = {
        "inputs": _results(run, "prepare", "train", "evaluate", "export", "variants"),
        "verify": run.config.verify.model_dump(),
        "require_variants": run.config.export.require_variants,
    }
    modules = (
        "export.verify",
        "export.verify_variants",
        "export.variants",
        "export.quantised",
        "export.int8",
        "export.coreml_structure",
        "export.inspect_coreml",
        "export.divergence",
        "export.environments",
        "export.evidence",
        "export.likeness",
        "export.comparison",
        "export.graph",
        "export.to_onnx",
        "export.verify_evidence",
        "pipeline.hard_set",
        "pipeline.metrics",
        "serve.runtime",
        "serve.formats",
        "serve.latency",
        "serve.provenance",
        *NETWORK,
        *PREPROCESSING,
    )
    return step_key(settings, modules, packages=(*LIBRARIES, "onnxruntime", "onnx"))


def verify(run: Run) -> StepResult:
    """Hold the ONNX file against PyTorch."""

    def build(folder: Path) -> None:
        from export.verify import build_verification

        build_verification(run, folder)

    return do_step(run, "verify", verify_key(run), build)


def publish(run: Run) -> StepResult:
    """Publish the verified artifact to the store."""
    from export.publish import publish as publish_run

    start = time.monotonic()
    return replace(publish_run(run), seconds=time.monotonic() - start)


def is_up_to_date(config: LineConfig) -> bool:
    """Whether every step's result, the published artifact too, is there already for this configuration and data."""
    from export.publish import content_digest
    from export.store import find_content

    if not versions(config.store / config.artifact_name):
        return False  # before hashing anything
    run, key = find_run(config)
    keys = {"prepare": lambda _: key, "train": train_key, "evaluate": evaluate_key, "export": export_key}
    keys |= {"variants": variants_key, "verify": verify_key}
    # In order: a key can only be computed from the results before it.
    if not all(is_current(run.step(name), key_of(run)) for name, key_of in keys.items()):
        return False
    return find_content(config.store / config.artifact_name, content_digest(run)) is not None


def _results(run: Run, *names: str) -> dict[str, str]:
    return {name: result_digest(run.step(name)) for name in names}


AFTER_PREPARE: dict[str, Step] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "variants": variants,
    "verify": verify,
    "publish": publish,
}


def run_line(
    config: LineConfig,
    *,
    call_prepare: Callable[[LineConfig], tuple[Run, StepResult]] = prepare,
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
