import json
from dataclasses import replace
from typing import Any

import pytest

from edgeline.export.parity.report import AccuracyDrop
from edgeline.export.quantization import search
from edgeline.export.quantization.search import SearchRequest, choose_calibration, choose_int8, search_schedule
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
        assert entry["p50_ms"] > 0
    assert report["chosen"] in {entry["recipe"] for entry in report["tried"]}
    assert report["speedup"] > 0


def test_the_search_begins_with_recipes_that_the_target_computes_without_saturating() -> None:
    assert not any(recipe.reduce_range for recipe in search_schedule(ExportConfig(target="x86-vnni"))[0].recipes)
    assert all(recipe.reduce_range for recipe in search_schedule(ExportConfig(target="x86-avx2"))[0].recipes)


def test_a_thorough_run_tries_every_kind_of_recipe() -> None:
    recipes = [recipe for stage in search_schedule(ExportConfig(thorough=True)) for recipe in stage.recipes]
    assert {recipe.ranges for recipe in recipes} == {"minmax", "average", "percentile", "entropy"}
    assert {recipe.per_channel for recipe in recipes} == {True, False}
    assert {recipe.activations for recipe in recipes} == {"uint8", "int8"}
    assert {recipe.correct_bias for recipe in recipes} == {True, False}


Choose = Any
LENIENT = Int8Thresholds(min_sqnr_db=5, min_agreement=0.5, min_clear_agreement=0.5, max_kl=1, max_difference=1)
SMALL = PreprocessSpec(height=SIZE, width=SIZE)


@pytest.fixture
def choose(samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch) -> Choose:
    """`choose(times, **settings)`: the search on a network of ten small convolutions, with these times, not measured ones."""

    def run(times: dict[str, float], thresholds: Int8Thresholds | None = None, **settings: Any) -> Any:
        def timed(models: dict[str, bytes], pixels: Any) -> dict[str, float]:
            return {name: next(ms for part, ms in times.items() if name.endswith(part)) for name in models}

        monkeypatch.setattr(search, "time_in_turn", timed)
        return choose_int8(
            SearchRequest(
                reference=convolutional(*ONE_FOR_ALL, layers=10),
                spec=SMALL,
                train=samples["train"],
                val=samples["val"],
                config=ExportConfig(calibration_images=8, **settings),
                thresholds=thresholds or LENIENT,
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


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe loses two points according to the labels."""
    drop = AccuracyDrop(
        reference_top1=1,
        top1=0.98,
        top1_interval=(0.93, 0.99),
        images=100,
        lost=2,
        gained=0,
        drop_points=2.0,
        drop_interval_points=(0.5, 3.5),
    )
    monkeypatch.setattr(search, "drop_between", lambda *_: drop)


def test_where_no_recipe_passes_every_stage_is_tried_and_nothing_is_shipped(choose: Choose, lossy: None) -> None:
    choice = choose({"float32": 10, "": 5}, max_drop=1.0)
    assert choice.model is None
    assert "no recipe passes; the best, " in choice.report.why
    assert "drops by 2.00 points (95 % interval 0.50 to 3.50), at most 1 allowed" in choice.report.why
    tried = [entry.recipe for entry in choice.report.tried]
    assert [name for name in tried if name.endswith("float")] == [f"U8S8 channel minmax bias {n} float" for n in (1, 2, 4, 8)]
    shares = [entry.integer_share for entry in choice.report.tried if entry.recipe.endswith("float")]
    assert shares == sorted(shares, reverse=True)


def test_a_class_with_more_images_does_not_unbalance_the_calibration(samples: dict[str, list[Sample]]) -> None:
    more = [replace(s, sha256=digest_of(i)) for i, s in enumerate([samples["train"][0]] * 40)]
    counts = [[s.index for s in choose_calibration([*samples["train"], *more], 12)].count(index) for index in range(3)]
    assert counts == [4, 4, 4]
