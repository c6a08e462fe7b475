"""Choose how to quantize by measuring: the fastest recipe within the thresholds, or none.

Ranges come from training images, balanced over the classes. Each recipe is compared with the float32 file on validation images,
through ONNX Runtime at the settings that ship. Labels are not read: the head that ships has usually learned from the validation
images too, so an accuracy there would be too good. The release gate measures the accuracy on the test split, which the search
does not see. The slower recipes are tried only if no quick one passes: `search_schedule` has the order.

Shapes: N images, K classes, H x W the model's input.
"""

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from edgeline.export.parity.compare import Outputs, in_batches
from edgeline.export.parity.similarity import compare_outputs, failed_thresholds, sqnr_db
from edgeline.export.quantization.histograms import Histograms, collect
from edgeline.export.quantization.report import CalibrationImages, Int8Report, QatReport, TriedRecipe, ValidationImages
from edgeline.export.quantization.static_int8 import (
    Quantizable,
    Ranges,
    Recipe,
    integer_share,
    make_ready,
    quantize,
    saturates,
)
from edgeline.export.quantization.statistics import Statistics, measure
from edgeline.pipeline.config import ExportConfig
from edgeline.pipeline.data.samples import Sample, stream_pixels
from edgeline.pipeline.models.devices import CPU_BATCH
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.atomic_files import digest_of
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.thresholds import Int8Thresholds
from edgeline.serve.errors import DataError, ExportError, TrainingError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.cpu import multiplies_exactly
from edgeline.serve.runtime.session import create_session

MAX_VALIDATION_IMAGES = 512
"""Validation images that recipes are measured on."""
SENSITIVITY_IMAGES = 16
EXCLUDED = (1, 2, 4, 8)
"""Numbers of most sensitive layers that stay float, in the order they are tried."""
NAMED = 3
"""Number of most sensitive layers that are named if no recipe passes."""
REMEDY = "train a network whose int8 pays (`edgeline backbones` lists them), or add onnx-fp16 to export.variants"
TIMED_RUNS = 40
ORT_MAGIC = b"ORTM"
"""At the fifth byte of a file in ORT's format."""
EQUALLY_FAST = 1.05
"""Two recipes whose times are within this factor count as equally fast, and the more exact one is chosen."""


@dataclass(frozen=True)
class Choice:
    """Result of a search."""

    model: bytes | None
    """The int8 file, or None where none is worth shipping."""
    report: Int8Report


class Tuned(NamedTuple):
    """A file ready for quantization whose weights were tuned for it, and how the tuning went."""

    ready: Quantizable
    report: QatReport


Tune = Callable[[Quantizable, bytes, int], Tuned]
"""From a file, its int8 form and a number of epochs: `export.quantization.qat.tune`, which needs
PyTorch, on a run's network."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What is quantized, and what the result must satisfy."""

    reference: bytes
    """The float32 ONNX file."""
    spec: PreprocessSpec
    train: Sequence[Sample]
    """Calibration images are chosen from these."""
    val: Sequence[Sample]
    """The recipes are measured on these."""
    config: ExportConfig
    """Target and effort."""
    thresholds: Int8Thresholds
    """The release gate's own, so that what is chosen passes there."""
    tune: Tune | None = None
    """Fine-tunes the weights for a recipe, if the network is available."""
    cache: ContentCache | None = None
    """Of what is measured of a backbone's activations; None measures it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchStage:
    """Recipes that are tried together."""

    name: str
    recipes: "tuple[Recipe, ...] | Callable[[_Search], Sequence[Recipe]]"
    """A function derives them from what was measured before."""
    quick: bool = False
    """Whether it is always tried, and completely. Other stages end with the first recipe that passes."""


def search_schedule(config: ExportConfig) -> tuple[SearchStage, ...]:
    """The stages of the search, in order.

    Quick recipes take one pass over the calibration images and run on the same kernels: the most exact of them costs no speed.
    Averaged ranges ignore the outliers of single images. The other calibration methods need histograms. Layers are left in
    float, and weights are tuned, with the ranges that were best until then. Per-tensor weights, signed and unsigned pairs are
    for the comparison of a thorough run: they were never the better choice for these networks. Tuning the weights takes
    longest and comes last.
    """
    base = base_recipe(config)
    corrected = replace(base, correct_bias=True)
    kernels = [replace(base, per_channel=False), replace(base, activations="int8")]
    if config.target == "x86-avx2":
        kernels.append(replace(base, reduce_range=False, weights="uint8"))
    stages = [
        SearchStage(name="quick", quick=True, recipes=(base, corrected, replace(corrected, ranges="average"))),
        SearchStage(
            name="calibration methods", recipes=(replace(corrected, ranges="percentile"), replace(corrected, ranges="mse"))
        ),
        SearchStage(name="sensitive layers in float", recipes=_without_worst),
    ]
    if config.thorough:
        stages.append(SearchStage(name="other kernels", recipes=tuple(kernels)))
    if config.qat_epochs:
        stages.append(SearchStage(name="quantization-aware training", recipes=_tuned))
    return tuple(stages)


@dataclass(kw_only=True)
class _Search:
    """The state of one search."""

    request: SearchRequest
    measured: "_Measured"
    pixels: Sequence[np.ndarray]
    """Of the validation images."""
    expected: Outputs
    """The reference's outputs for them."""
    tried: dict[Recipe, TriedRecipe] = field(default_factory=dict)
    passed: dict[Recipe, bytes] = field(default_factory=dict)
    tuning: QatReport | None = None
    alone_db: dict[str, float] = field(default_factory=dict)
    """SQNR of the logits if only this layer is quantized, by its node; the most sensitive one first."""

    @property
    def best(self) -> Recipe:
        """The most exact recipe so far, of those for the target's own kernels."""
        base = base_recipe(self.request.config)
        own = [recipe for recipe in self.tried if (recipe.kinds, recipe.reduce_range) == (base.kinds, base.reduce_range)]
        return max(own, key=self.sqnr_db)

    def sqnr_db(self, recipe: Recipe) -> float:
        """Of a recipe that was tried."""
        return self.tried[recipe].similarity.sqnr_db

    def quantize(self, recipe: Recipe) -> bytes | None:
        """The int8 file of a recipe, None if its weights cannot be tuned."""
        ready, ranges = self.measured.ready, self.measured.ranges(recipe.ranges)
        if not recipe.tuned:
            return quantize(ready, ranges, recipe, self.measured.means if recipe.correct_bias else None)
        if self.request.tune is None:
            return None
        # Learning starts at the biases that undo the rounding of the original weights; afterwards they are learned ones.
        simulated = quantize(ready, ranges, replace(recipe, correct_bias=True), self.measured.means)
        try:
            tuned = self.request.tune(ready, simulated, recipe.tuned)
        except (ExportError, TrainingError) as error:
            self.tuning = QatReport(failed=str(error))  # what was tried before keeps its figures
            return None
        self.tuning = tuned.report
        return quantize(tuned.ready, ranges, recipe)  # the ranges that were simulated: the weights were tuned for them

    def evaluate(self, recipe: Recipe, model: bytes) -> bool:
        """Compare a recipe's file with the reference on the validation images; returns whether it is within all thresholds."""
        request = self.request
        similarity = compare_outputs(self.expected, _run(create_session(model), self.pixels))
        failed = failed_thresholds(similarity, None, request.thresholds)
        if request.config.target == "x86-avx2" and saturates(model):
            failed.append("two products may exceed 16 bits, so x86 without VNNI would compute other outputs")
        self.tried[recipe] = TriedRecipe(
            recipe=recipe.name,
            holds=not failed,
            failed_thresholds=tuple(failed),
            bytes=len(model),
            size_ratio=len(model) / len(request.reference),
            integer_share=integer_share(request.reference, model, request.spec.height, request.spec.width),
            similarity=similarity,
        )
        if not failed:
            self.passed[recipe] = model
        return not failed


def choose_int8(request: SearchRequest) -> Choice:
    """Quantize the reference in several ways and choose one.

    Raises:
        DataError: too few training images to calibrate on.
        ExportError: the network cannot be quantized.
    """
    config, spec = request.config, request.spec
    calibration = choose_calibration(request.train, config.calibration_images)
    validation = list(request.val[:MAX_VALIDATION_IMAGES])
    pixels = [pixels_HW3 for batch_NHW3 in stream_pixels(validation, spec, CPU_BATCH) for pixels_HW3 in batch_NHW3]
    search = _Search(
        request=request,
        measured=_Measured(make_ready(request.reference), calibration, request),
        pixels=pixels,
        expected=_run(create_session(request.reference), pixels),
    )
    for stage in search_schedule(config):
        if search.passed and not stage.quick and not config.thorough:
            break
        _try(search, stage)
    report = Int8Report(
        target=config.target,
        calibration=CalibrationImages(images=len(calibration), sha256=digest_of([sample.sha256 for sample in calibration])),
        evaluated_on=ValidationImages(images=len(validation)),
        exact_precision_setting=not multiplies_exactly(),
        tried=tuple(search.tried.values()),
        tuning=search.tuning,
    )
    if search.passed:
        return _fastest(search, report)
    return Choice(None, report.model_copy(update={"why": _why_none(search)}))


def _why_none(search: _Search) -> str:
    """Why no recipe passes: what the best one fails, which layers lose most, and what to do."""
    best = max(search.tried.values(), key=lambda entry: entry.similarity.sqnr_db)
    parts = [f"no recipe passes; the best, {best.recipe}: {'; '.join(best.failed_thresholds)}"]
    if search.tuning is not None and search.tuning.failed:
        parts.append(search.tuning.failed)
    weights = {node.name: node.input[1] for node in search.measured.ready.model.graph.node if node.name in search.alone_db}
    if worst := [
        f"{weights[name].removeprefix('network.').removesuffix('.weight')} ({search.alone_db[name]:.1f} dB if only it is int8)"
        for name in list(search.alone_db)[:NAMED]
    ]:
        parts.append(f"most is lost in {', '.join(worst)}")
    return "; ".join([*parts, REMEDY])


def _try(search: _Search, stage: SearchStage) -> None:
    recipes = stage.recipes(search) if callable(stage.recipes) else stage.recipes
    for recipe in track(recipes, f"int8 recipes: {stage.name}", len(recipes)):
        model = search.quantize(recipe)
        if model is not None and search.evaluate(recipe, model) and not stage.quick and not search.request.config.thorough:
            break


def base_recipe(config: ExportConfig) -> Recipe:
    """The recipe that a target's processors compute fastest and without saturating."""
    return Recipe(reduce_range=config.target == "x86-avx2")


def choose_calibration(train: Sequence[Sample], count: int) -> list[Sample]:
    """Choose training images in turn from every class, in an order that depends on their content only.

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
            "export.variants",
            code="too_few_calibration_images",
        )
    return chosen


class _Measured:
    """Ranges and means over the calibration images, each measured once for all recipes."""

    def __init__(self, ready: Quantizable, calibration: Sequence[Sample], request: SearchRequest) -> None:
        self.ready, self.calibration, self.request = ready, calibration, request
        self._ranges: dict[str, Ranges] = {}

    @cached_property
    def statistics(self) -> Statistics:
        return measure(self.ready, self.calibration, self.request.spec, self.request.cache)

    @cached_property
    def histograms(self) -> Histograms:
        batches = stream_pixels(self.calibration, self.request.spec, CPU_BATCH)
        return collect(self.ready, batches, self.ranges("minmax"))

    def ranges(self, method: str) -> Ranges:
        if method not in self._ranges:
            measured = self.statistics if method in ("minmax", "average") else self.histograms
            self._ranges[method] = measured.ranges(method)
        return self._ranges[method]

    @cached_property
    def means(self) -> dict[str, np.ndarray]:
        return self.statistics.means


def _fastest(search: _Search, report: Int8Report) -> Choice:
    """Choose the fastest of the recipes that passed; of equally fast ones the one most similar to the reference.

    Recipes that are run by the same kernels are equally fast, whatever times a busy machine would measure: only the most exact
    of them is timed.
    """
    config = search.request.config
    exact = {recipe.kernels: recipe for recipe in sorted(search.passed, key=search.sqnr_db)}
    models = {"float32": search.request.reference, **{recipe.name: search.passed[recipe] for recipe in exact.values()}}
    times = time_in_turn(models, search.pixels[0][None])
    p50_ms = {recipe.name: times[exact[recipe.kernels].name] for recipe in search.passed}
    best_ms = min(times[recipe.name] for recipe in exact.values())
    fast = [recipe for recipe in exact.values() if times[recipe.name] <= best_ms * EQUALLY_FAST]
    best = max(fast, key=search.sqnr_db)
    speedup = times["float32"] / times[best.name]
    here = "arm64" if not _is_x86() else "x86-vnni" if multiplies_exactly() else "x86-avx2"
    figures: dict[str, Any] = {
        "tried": tuple(entry.model_copy(update={"p50_ms": p50_ms.get(entry.recipe)}) for entry in search.tried.values()),
        "float32_p50_ms": times["float32"],
        "speedup": speedup,
        "timed_on": here,
    }
    # A time measured on another kind of processor does not count for the target.
    if here == config.target and speedup < config.min_speedup:
        why = f"int8 is {speedup:.2f} times as fast as float32 here, under export.min_speedup = {config.min_speedup:g}"
        return Choice(None, report.model_copy(update=figures | {"why": why}))
    return Choice(search.passed[best], report.model_copy(update=figures | {"chosen": best.name}))


def time_in_turn(models: dict[str, bytes], pixels_1HW3: np.ndarray, runs: int = TIMED_RUNS) -> dict[str, float]:
    """Median milliseconds of one image on one thread; the models take turns, so that other load slows all of them down."""
    # Files in ORT's format are not parsed, here or on a device, so the setting is always on for them.
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
    return {name: float(np.median(seconds)) * 1e3 for name, seconds in times.items()}


def _without_worst(search: _Search) -> list[Recipe]:
    """Recipes that leave the most sensitive layers in float, a few more each time.

    A layer's sensitivity is what quantizing it alone does to the logits, with the best ranges so far.
    """
    ready, best, pixels = search.measured.ready, search.best, search.pixels[:SENSITIVITY_IMAGES]
    nodes = [node.name for node in ready.model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    others = [node.name for node in ready.model.graph.node if node.op_type not in ("Conv", "Gemm", "MatMul")]
    expected_NK = _run(create_session(ready.model.SerializeToString()), pixels).logits_NK
    ranges = search.measured.ranges(best.ranges)
    found = {}
    for name in track(nodes, "measuring each layer's sensitivity", len(nodes)):
        alone = replace(best, correct_bias=False, exclude=(*others, *(n for n in nodes if n != name)))
        found[name] = sqnr_db(expected_NK, _run(create_session(quantize(ready, ranges, alone)), pixels).logits_NK)
    worst = sorted(nodes, key=lambda name: found[name])
    search.alone_db = {name: found[name] for name in worst}
    return [replace(best, exclude=tuple(worst[:count])) for count in EXCLUDED if count < len(nodes)]


def _tuned(search: _Search) -> list[Recipe]:
    """The most exact recipe so far with weights tuned for it; corrected biases are then learned ones."""
    return [replace(search.best, correct_bias=False, tuned=search.request.config.qat_epochs)]


def _run(session: Any, pixels: Sequence[np.ndarray]) -> Outputs:
    return Outputs.join(session.run(["probabilities", "logits"], {"image": batch}) for batch in in_batches(pixels, CPU_BATCH))


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
