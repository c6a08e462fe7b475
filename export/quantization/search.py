"""Choose how to quantize, by measuring: the fastest recipe that loses next to nothing, or none.

Ranges come from training images, balanced over the classes. Each recipe is judged on validation images, through ONNX Runtime
at the settings that ship; neither touches the test split, which the gate uses afterwards. The slower recipes are tried where
no quick one holds: `ladder` says in which order.

Shapes: N images, K classes, H x W the model's input.
"""

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from edgeline.export.parity.compare import Outputs, in_batches
from edgeline.export.parity.similarity import compare_outputs, drop_between, failed_thresholds, sqnr_db
from edgeline.export.quantization.static_int8 import (
    Quantizable,
    Ranges,
    Recipe,
    input_means,
    integer_share,
    make_ready,
    measure_ranges,
    quantize,
    saturates,
)
from edgeline.pipeline.config import ExportConfig, Int8Thresholds
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.atomic_files import digest_of
from edgeline.pipeline.training.features import CPU_BATCH
from edgeline.serve.errors import DataError, ExportError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.cpu import multiplies_exactly
from edgeline.serve.runtime.session import create_session

VALIDATION_IMAGES = 512
"""Validation images that recipes are judged on, at most."""
SENSITIVITY_IMAGES = 16
EXCLUDED = (1, 2, 4, 8)
"""How many of the most sensitive layers are left in float, in turn."""
TIMED_RUNS = 40
ORT_MAGIC = b"ORTM"
"""At the fifth byte of a file in ORT's format."""
EQUALLY_FAST = 1.05
"""Two recipes whose times are within this factor count as equally fast, and the more exact one is taken."""


@dataclass(frozen=True)
class Choice:
    """What the autopilot found."""

    model: bytes | None
    """The int8 file, or None where none is worth shipping."""
    report: dict[str, Any]


class Tuned(NamedTuple):
    """A file ready for quantization whose weights were tuned for it, and how the tuning went."""

    ready: Quantizable
    report: dict[str, Any]


Tune = Callable[[Quantizable, bytes, int], Tuned]
"""From a file, its int8 form and a number of epochs: `export.quantization.qat.tune`, which needs
PyTorch, on a run's network."""


def choose_int8(
    reference: bytes,
    spec: PreprocessSpec,
    train: Sequence[Sample],
    val: Sequence[Sample],
    config: ExportConfig,
    thresholds: Int8Thresholds,
    tune: Tune | None = None,
) -> Choice:
    """Quantize the reference in several ways and choose one.

    Args:
        reference: the float32 ONNX file's bytes.
        spec: its preprocessing.
        train: calibration images are drawn from these.
        val: the recipes are judged on these.
        config: target, largest drop and effort.
        thresholds: the gate's own, held here already, so that what is chosen is not refused there.
        tune: fine-tunes the weights for a recipe, where the network is at hand.

    Raises:
        DataError: too few training images to calibrate on.
        ExportError: the network cannot be quantized.
    """
    calibration = choose_calibration(train, config.calibration_images)
    batches = partial(stream_pixels, calibration, spec, CPU_BATCH)
    judged = list(val[:VALIDATION_IMAGES])
    pixels = [pixels_HW3 for batch_NHW3 in stream_pixels(judged, spec, CPU_BATCH) for pixels_HW3 in batch_NHW3]
    targets_N = np.array([sample.index for sample in judged])
    ready = make_ready(reference)
    measured = _Measured(ready, batches)
    expected = _run(create_session(reference), pixels)

    tried: list[dict[str, Any]] = []
    holding: dict[Recipe, bytes] = {}
    tuning: dict[str, Any] = {}
    for quick, recipes in ladder(config):
        if holding and not quick and not config.thorough:
            break
        offered = recipes if recipes is not None else _without_worst(measured, pixels[:SENSITIVITY_IMAGES], config)
        for recipe in track(offered, "trying int8 recipes", len(offered)):
            model = _make(recipe, measured, tune, tuning)
            if model is None:
                continue
            observed = _run(create_session(model), pixels)
            entry = _judge(recipe, model, reference, spec, expected, observed, targets_N, config, thresholds)
            tried.append(entry)
            if entry["holds"]:
                holding[recipe] = model
                if not quick and not config.thorough:
                    break
    report = {
        "target": config.target,
        "calibration": {"images": len(calibration), "sha256": digest_of([sample.sha256 for sample in calibration])},
        "judged_on": {"split": "val", "images": len(judged)},
        "exact_precision_setting": not multiplies_exactly(),
        "tried": tried,
        "tuning": tuning or None,
        "chosen": None,
    }
    if not holding:
        best = max(tried, key=lambda entry: float(entry["similarity"]["sqnr_db"]))
        untuned = f"; {tuning['failed']}" if "failed" in tuning else ""
        why = f"no recipe holds; the nearest, {best['recipe']}: {'; '.join(best['failed_thresholds'])}{untuned}"
        return Choice(None, report | {"why": why})
    return _fastest(reference, holding, tried, report, pixels[0][None], config)


def ladder(config: ExportConfig) -> list[tuple[bool, list[Recipe] | None]]:
    """The recipes in the order they are tried: whether they are quick, and which; None stands for leaving the worst layers out.

    Quick ones take two passes over the calibration images, and run on the same kernels: the most exact of them costs no speed.
    Averaged ranges leave out what a single picture does. Per-tensor weights, signed and unsigned pairs are for a thorough run's
    comparison: they were never the better choice for these networks. Tuning the weights takes longest and comes last.
    """
    base = base_recipe(config)
    corrected = replace(base, correct_bias=True)
    quick = [base, corrected, replace(corrected, ranges="average")]
    others = [replace(base, per_channel=False), replace(base, activations="int8")]
    if config.target == "x86-avx2":
        others.append(replace(base, reduce_range=False, weights="uint8"))
    ranges = [replace(base, correct_bias=True, ranges=method) for method in ("percentile", "entropy")]
    tuned = [replace(base, tuned=config.qat_epochs)] if config.qat_epochs else []
    return [(True, quick), (False, None), (False, ranges), (False, others if config.thorough else []), (False, tuned)]


def base_recipe(config: ExportConfig) -> Recipe:
    """The recipe that a target's processors compute fastest and without saturating."""
    return Recipe(reduce_range=config.target == "x86-avx2")


def choose_calibration(train: Sequence[Sample], count: int) -> list[Sample]:
    """Take training images in turn from every class, in an order that only their content decides.

    Raises:
        DataError: there are fewer than 8.
    """
    by_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in sorted(train, key=lambda s: digest_of([s.sha256])):
        by_class[sample.index].append(sample)
    rounds = max(len(group) for group in by_class.values())
    chosen = [group[r] for r in range(rounds) for _, group in sorted(by_class.items()) if r < len(group)][:count]
    if len(chosen) < 8:
        raise DataError(
            f"int8 is calibrated on at least 8 training images, there are {len(chosen)}; add some, or leave int8 out of "
            "edgeline.export.variants",
            code="too_few_calibration_images",
        )
    return chosen


class _Measured:
    """What calibration images showed, measured once for all recipes that ask."""

    def __init__(self, ready: Quantizable, batches: Any) -> None:
        self.ready, self.batches = ready, batches
        self._ranges: dict[str, Ranges] = {}
        self._means: dict[str, np.ndarray] | None = None

    def ranges(self, method: str) -> Ranges:
        if method not in self._ranges:
            self._ranges[method] = measure_ranges(self.ready, self.batches(), method)
        return self._ranges[method]

    @property
    def means(self) -> dict[str, np.ndarray]:
        if self._means is None:
            self._means = input_means(self.ready, self.batches())
        return self._means


def _make(recipe: Recipe, measured: _Measured, tune: Tune | None, tuning: dict[str, Any]) -> bytes | None:
    """The int8 file of a recipe, None where its weights cannot be tuned; `tuning` is told how that went."""
    ready, ranges = measured.ready, measured.ranges(recipe.ranges)
    if not recipe.tuned:
        return quantize(ready, ranges, recipe, measured.means if recipe.correct_bias else None)
    if tune is None:
        return None
    # The biases that undo the rounding of today's weights are where the learning starts; afterwards they are learned ones.
    simulated = quantize(ready, ranges, replace(recipe, correct_bias=True), measured.means)
    try:
        tuned = tune(ready, simulated, recipe.tuned)
    except (ExportError, TrainingError) as error:
        tuning["failed"] = str(error)  # what was tried before keeps its figures
        return None
    tuning.update(tuned.report)
    return quantize(tuned.ready, ranges, recipe)  # the ranges that were simulated: the weights were tuned for them


def _judge(
    recipe: Recipe,
    model: bytes,
    reference: bytes,
    spec: PreprocessSpec,
    expected: Outputs,
    observed: Outputs,
    targets_N: np.ndarray,
    config: ExportConfig,
    thresholds: Int8Thresholds,
) -> dict[str, Any]:
    similarity, drop = compare_outputs(expected, observed), drop_between(expected, observed, targets_N)
    missed = failed_thresholds(similarity, drop, thresholds.model_copy(update={"max_drop": config.max_drop}))
    if config.target == "x86-avx2" and saturates(model):
        missed.append("two products may exceed 16 bits, so x86 without VNNI would answer otherwise")
    return {
        "recipe": recipe.name,
        "holds": not missed,
        "failed_thresholds": missed,
        "bytes": len(model),
        "size_ratio": len(model) / len(reference),
        "integer_share": integer_share(reference, model, spec.height, spec.width),
        "similarity": similarity.figures,
        "accuracy": drop,
    }


def _fastest(
    reference: bytes,
    holding: dict[Recipe, bytes],
    tried: list[dict[str, Any]],
    report: dict[str, Any],
    pixels_1HW3: np.ndarray,
    config: ExportConfig,
) -> Choice:
    """Take the fastest of the recipes that hold; among equally fast ones the one most like the reference.

    Recipes that are run by the same kernels are equally fast, whatever a busy machine would make of their times: only the most
    exact of them is timed.
    """
    sqnr = {entry["recipe"]: float(entry["similarity"]["sqnr_db"]) for entry in tried}
    exact = {recipe.kernels: recipe for recipe in sorted(holding, key=lambda recipe: sqnr[recipe.name])}
    times = time_in_turn({"float32": reference, **{recipe.name: holding[recipe] for recipe in exact.values()}}, pixels_1HW3)
    taken = {recipe.name: times[exact[recipe.kernels].name] for recipe in holding}
    for entry in tried:
        entry["p50_ms"] = taken.get(entry["recipe"])
    report["float32_p50_ms"] = times["float32"]
    best_ms = min(times[recipe.name] for recipe in exact.values())
    fast = [recipe for recipe in exact.values() if times[recipe.name] <= best_ms * EQUALLY_FAST]
    best = max(fast, key=lambda recipe: sqnr[recipe.name])
    chosen = best.name
    speedup = times["float32"] / times[chosen]
    here = "arm64" if not _is_x86() else "x86-vnni" if multiplies_exactly() else "x86-avx2"
    report |= {"chosen": chosen, "speedup": speedup, "timed_on": here}
    # A time taken on another kind of processor says nothing about the target's.
    if here == config.target and speedup < config.min_speedup:
        why = f"int8 is {speedup:.2f} times as fast as float32 here, under export.min_speedup = {config.min_speedup:g}"
        return Choice(None, report | {"chosen": None, "why": why})
    return Choice(holding[best], report)


def time_in_turn(models: dict[str, bytes], pixels_1HW3: np.ndarray, runs: int = TIMED_RUNS) -> dict[str, float]:
    """Median milliseconds of one image on one thread, the models taking turns so that a busy moment hits them all."""
    # What a file in ORT's format holds is not looked into: it is timed as a device would run it that does not know either.
    sessions = {
        name: create_session(model, threads=1, saturates=model[4:8] == ORT_MAGIC or saturates(model))
        for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(-3, runs):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(["probabilities"], {"image": pixels_1HW3})
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(taken)) * 1e3 for name, taken in times.items()}


def _without_worst(measured: _Measured, pixels: Sequence[np.ndarray], config: ExportConfig) -> list[Recipe]:
    """Recipes that leave the most sensitive convolutions in float, a few more each time.

    A layer's sensitivity is what quantizing it alone does to the logits.
    """
    ready = measured.ready
    base = base_recipe(config)
    nodes = [node.name for node in ready.model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    others = [node.name for node in ready.model.graph.node if node.op_type not in ("Conv", "Gemm", "MatMul")]
    expected_NK = _run(create_session(ready.model.SerializeToString()), pixels).logits_NK
    ranges = measured.ranges(base.ranges)
    sqnr = {}
    for name in track(nodes, "measuring each layer's sensitivity", len(nodes)):
        alone = replace(base, exclude=(*others, *(n for n in nodes if n != name)))
        sqnr[name] = sqnr_db(expected_NK, _run(create_session(quantize(ready, ranges, alone)), pixels).logits_NK)
    worst = sorted(nodes, key=lambda name: sqnr[name])
    corrected = replace(base, correct_bias=True)
    return [replace(corrected, exclude=tuple(worst[:count])) for count in EXCLUDED if count < len(nodes)]


def _run(session: Any, pixels: Sequence[np.ndarray]) -> Outputs:
    return Outputs.join(session.run(["probabilities", "logits"], {"image": batch}) for batch in in_batches(pixels, CPU_BATCH))


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
