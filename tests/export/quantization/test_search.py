import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from onnxruntime.quantization.calibrate import TensorData

from edgeline.export.quantization import search
from edgeline.export.quantization.report import QatReport
from edgeline.export.quantization.search import SearchRequest, Tuned, choose_calibration, choose_int8, search_schedule
from edgeline.export.quantization.static_int8 import Quantizable
from edgeline.export.quantization.statistics import Statistics
from edgeline.pipeline.config import ExportConfig
from edgeline.pipeline.data.samples import Sample, read_prepared
from edgeline.pipeline.runs.atomic_files import digest_of
from edgeline.pipeline.thresholds import Int8Thresholds
from edgeline.serve.errors import DataError
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.small_graphs import ONE_FOR_ALL, SIZE, convolutional


@pytest.fixture(scope="module")
def report(finished: Any) -> dict[str, Any]:
    variants = json.loads((finished.run.step("variants") / "variants.json").read_text())
    found: dict[str, Any] = variants["int8"]
    return found


@pytest.fixture(scope="module")
def samples(finished: Any) -> dict[str, list[Sample]]:
    prepared = read_prepared(finished.run.step("prepare"))
    return {split: prepared.of(split) for split in ("train", "val", "test")}  # type: ignore[arg-type]


def test_it_calibrates_on_as_many_training_images_of_every_class(samples: dict[str, list[Sample]]) -> None:
    chosen = choose_calibration(samples["train"], 12)
    assert {sample.split for sample in chosen} == {"train"}
    assert [[s.index for s in chosen].count(index) for index in range(3)] == [4, 4, 4]
    assert len({sample.sha256 for sample in chosen}) == 12


def test_the_order_of_the_samples_does_not_change_what_is_calibrated_on(samples: dict[str, list[Sample]]) -> None:
    assert choose_calibration(samples["train"][::-1], 12) == choose_calibration(samples["train"], 12)


def test_the_calibration_images_are_logged_by_their_digest(report: dict[str, Any], samples: dict[str, list[Sample]]) -> None:
    chosen = choose_calibration(samples["train"], 24)
    assert report["calibration"] == {"images": 24, "sha256": digest_of([sample.sha256 for sample in chosen])}


def test_too_few_training_images_are_rejected_with_what_to_do(samples: dict[str, list[Sample]]) -> None:
    with pytest.raises(DataError, match="at least 8 training images, there are 7; add some, or leave int8 out") as caught:
        choose_calibration(samples["train"][:7], 128)
    assert caught.value.code == "too_few_calibration_images"


def test_recipes_are_measured_on_validation_images_only(report: dict[str, Any], samples: dict[str, list[Sample]]) -> None:
    assert report["evaluated_on"] == {"split": "val", "images": len(samples["val"])}


def test_every_recipe_that_was_tried_has_its_figures(report: dict[str, Any]) -> None:
    assert [entry["recipe"] for entry in report["tried"]] == [
        "U8S8 channel minmax",
        "U8S8 channel minmax bias",
        "U8S8 channel average bias",
    ]
    for entry in report["tried"]:
        assert entry["holds"] == (not entry["failed_thresholds"])
        assert entry["integer_share"] == 1
        assert 0.2 < entry["size_ratio"] < 0.3
        assert entry["similarity"]["sqnr_db"] > 10
        assert "accuracy" not in entry
        assert entry["p50_ms"] > 0
    assert report["chosen"] in {entry["recipe"] for entry in report["tried"]}
    assert report["speedup"] > 0


def test_the_search_begins_with_recipes_that_the_target_computes_without_saturating() -> None:
    for target, reduce_range in (("x86-vnni", False), ("x86-avx2", True)):
        first = search_schedule(ExportConfig(target=target))[0].recipes
        assert isinstance(first, tuple)
        assert {recipe.reduce_range for recipe in first} == {reduce_range}


def test_a_thorough_run_tries_every_kind_of_recipe() -> None:
    stages = search_schedule(ExportConfig(thorough=True))
    recipes = [recipe for stage in stages if isinstance(stage.recipes, tuple) for recipe in stage.recipes]
    assert {recipe.ranges for recipe in recipes} == {"minmax", "average", "percentile", "mse"}
    assert {recipe.per_channel for recipe in recipes} == {True, False}
    assert {recipe.activations for recipe in recipes} == {"uint8", "int8"}
    assert {recipe.correct_bias for recipe in recipes} == {True, False}


Choose = Any
LENIENT = Int8Thresholds(min_sqnr_db=5, min_agreement=0.5, min_clear_agreement=0.5, max_kl=1, max_difference=1)
FAR = 1000
UNATTAINABLE = LENIENT.model_copy(update={"min_sqnr_db": 150})
SMALL = PreprocessSpec(height=SIZE, width=SIZE)


@pytest.fixture
def choose(samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch) -> Choose:
    """`choose(times, **settings)`: the search on a network of ten small convolutions, with these times, not measured ones."""

    def run(times: dict[str, float], thresholds: Int8Thresholds = LENIENT, tune: Any = None, **settings: Any) -> Any:
        val = settings.pop("val", samples["val"])

        def timed(models: dict[str, bytes], pixels: Any) -> dict[str, float]:
            return {name: next(ms for part, ms in times.items() if name.endswith(part)) for name in models}

        monkeypatch.setattr(search, "time_in_turn", timed)
        return choose_int8(
            SearchRequest(
                reference=convolutional(*ONE_FOR_ALL, layers=10),
                spec=SMALL,
                train=samples["train"],
                val=val,
                config=ExportConfig(calibration_images=8, **settings),
                thresholds=thresholds,
                tune=tune,
            )
        )

    return run


def test_of_recipes_for_the_same_kernels_the_most_exact_is_chosen_whatever_the_times(choose: Choose) -> None:
    choice = choose({"float32": 10, "minmax": 4.0, "bias": 5.0})
    ratios = {entry.recipe: entry.similarity.sqnr_db for entry in choice.report.tried}
    assert ratios[choice.report.chosen] == max(ratios.values()) > min(ratios.values())
    assert choice.model is not None


@pytest.mark.long
def test_the_fastest_recipe_that_passes_is_chosen_and_of_equally_fast_ones_the_more_exact(choose: Choose) -> None:
    times = {"float32": 10, "tensor minmax": 4.0, "": 5.0}
    assert choose(times, thorough=True, qat_epochs=0).report.chosen == "U8S8 tensor minmax"
    chosen = choose(times | {"tensor minmax": 4.9}, thorough=True, qat_epochs=0).report.chosen
    assert "tensor" not in chosen


def test_a_recipe_that_the_release_gate_would_reject_is_not_chosen_and_the_search_continues(choose: Choose) -> None:
    first = choose({"float32": 10, "": 5}).report.tried
    needed = max(entry.similarity.sqnr_db for entry in first) + 0.01
    choice = choose({"float32": 10, "": 5}, thresholds=LENIENT.model_copy(update={"min_sqnr_db": needed}))
    assert [entry.holds for entry in choice.report.tried[:3]] == [False, False, False]
    assert "SQNR" in choice.report.tried[0].failed_thresholds[0]
    assert len(choice.report.tried) > 3


def test_int8_that_is_no_faster_here_is_not_shipped(choose: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "multiplies_exactly", lambda: True)
    monkeypatch.setattr(search, "_is_x86", lambda: True)
    choice = choose({"float32": 10, "": 9.9}, target="x86-vnni")
    assert choice.model is None
    assert choice.report.why == "int8 is 1.01 times as fast as float32 here, under export.min_speedup = 1.05"


def test_a_time_measured_on_another_processor_does_not_decide(choose: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_is_x86", lambda: True)
    choice = choose({"float32": 10, "minmax": 20, "bias": 20}, target="arm64")
    assert choice.model is not None
    assert str(choice.report.timed_on).startswith("x86")


def test_for_old_x86_only_recipes_that_cannot_saturate_pass(choose: Choose) -> None:
    choice = choose({"float32": 10, "minmax 7 bits": 5, "7 bits bias": 5}, target="x86-avx2")
    assert choice.model is not None
    assert "7 bits" in choice.report.chosen


def test_where_no_recipe_passes_every_stage_is_tried_and_nothing_is_shipped(choose: Choose) -> None:
    choice = choose({"float32": 10, "": 5}, thresholds=UNATTAINABLE)
    assert choice.model is None
    assert "no recipe passes; the best, " in choice.report.why
    assert "dB, at least 150 required" in choice.report.why
    assert re.search(r"most is lost in kernel\d* \(\d+\.\d dB if only it is int8\), ", choice.report.why)
    assert "(`edgeline backbones` lists them), or add onnx-fp16 to export.variants" in choice.report.why
    tried = [entry.recipe for entry in choice.report.tried]
    assert [name.split()[2] for name in tried[:5]] == ["minmax", "minmax", "average", "percentile", "mse"]
    in_float = [entry for entry in choice.report.tried if entry.recipe.endswith("float")]
    assert [entry.recipe.rpartition(" bias ")[2] for entry in in_float] == ["1 float", "2 float", "4 float", "8 float"]
    shares = [entry.integer_share for entry in in_float]
    assert shares == sorted(shares, reverse=True)


@pytest.fixture
def outlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor has outliers of `FAR` times its range, in too many images for averaging to help; histograms ignore them."""
    measured = Statistics.ranges

    def ranges(self: Statistics, method: str) -> Any:
        found = measured(self, method)
        low, high = found["clip4"].range_value
        found["clip4"] = TensorData(lowest=low, highest=FAR * high)
        return found

    monkeypatch.setattr(Statistics, "ranges", ranges)


def test_the_labels_of_validation_images_are_not_read_because_the_head_has_learned_them(
    choose: Choose, samples: dict[str, list[Sample]]
) -> None:
    fields = ("path", "sha256", "name", "pixels", "width", "height")
    unlabeled = [SimpleNamespace(**{field: getattr(sample, field) for field in fields}) for sample in samples["val"]]
    times = {"float32": 10, "": 5}
    assert choose(times, val=unlabeled, max_drop=0).report == choose(times, max_drop=5).report


@pytest.mark.usefixtures("outlier")
def test_layers_stay_in_float_and_weights_are_tuned_with_the_best_ranges_not_with_the_first(choose: Choose) -> None:
    tuned: list[bytes] = []

    def tune(ready: Quantizable, quantized: bytes, epochs: int) -> Tuned:
        tuned.append(quantized)
        return Tuned(ready, QatReport(epochs=epochs))

    choice = choose({"float32": 10, "": 5}, thresholds=UNATTAINABLE, tune=tune)
    found = {entry.recipe: entry.similarity.sqnr_db for entry in choice.report.tried}
    assert max(found[f"U8S8 channel {name} bias"] for name in ("minmax", "average")) < 10
    assert max(found[f"U8S8 channel {name} bias"] for name in ("percentile", "mse")) > 20
    later = [name for name in found if "float" in name or "tuned" in name]
    assert [name.split(" bias ")[-1] for name in later][:4] == ["1 float", "2 float", "4 float", "8 float"]
    assert later[-1].endswith(" tuned 2")
    assert len(later) == 5
    assert not [name for name in later if "minmax" in name or "average" in name]
    assert min(found[name] for name in later) > 20
    assert len(tuned) == 1


@pytest.mark.usefixtures("outlier")
def test_a_recipe_that_needs_both_other_ranges_and_layers_in_float_is_found(choose: Choose) -> None:
    first = choose({"float32": 10, "": 5}, thresholds=UNATTAINABLE, qat_epochs=0).report.tried
    best_db = max(entry.similarity.sqnr_db for entry in first if "float" not in entry.recipe)
    needed = LENIENT.model_copy(update={"min_sqnr_db": best_db + 0.01})
    choice = choose({"float32": 10, "": 5}, thresholds=needed)
    assert choice.report.chosen is not None
    assert choice.report.chosen.endswith("float")
    assert "minmax" not in choice.report.chosen


def test_the_same_search_twice_gives_the_same_file_and_report(choose: Choose) -> None:
    needed = LENIENT.model_copy(update={"min_sqnr_db": 22})
    one, other = (choose({"float32": 10, "": 5}, thresholds=needed) for _ in range(2))
    assert (one.model, one.report) == (other.model, other.report)


def test_a_class_with_more_images_does_not_unbalance_the_calibration(samples: dict[str, list[Sample]]) -> None:
    more = [replace(s, sha256=digest_of(i)) for i, s in enumerate([samples["train"][0]] * 40)]
    counts = [[s.index for s in choose_calibration([*samples["train"], *more], 12)].count(index) for index in range(3)]
    assert counts == [4, 4, 4]
