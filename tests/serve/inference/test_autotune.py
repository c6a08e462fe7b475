"""The concurrency plan: measured, saved, and loaded only from a folder that no one else may write to."""

import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.inference import autotune
from edgeline.serve.inference.autotune import find_plan, images_per_s, load_plan, sample_image, save_plan
from edgeline.serve.inference.scheduler import ConcurrencyPlan


@pytest.fixture(scope="module")
def classifier(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template, threads=1)


def rates_of(table: dict[tuple[int, int, int], float]) -> object:
    return lambda classifier, image, plan, seconds: table.get((plan.workers, plan.threads, plan.batch), 1.0)


PLANS = {
    "many workers are faster": ({(4, 1, 1): 100.0, (1, 4, 1): 60.0}, ConcurrencyPlan(workers=4, threads=1)),
    "one worker is as fast": (
        {(4, 1, 1): 100.0, (1, 4, 1): 99.0},
        ConcurrencyPlan(workers=1, threads=4),
    ),
    "batches are faster": ({(4, 1, 1): 100.0, (4, 1, 4): 120.0}, ConcurrencyPlan(workers=4, threads=1, batch=4)),
    "batches are hardly faster": ({(4, 1, 1): 100.0, (4, 1, 8): 109.0}, ConcurrencyPlan(workers=4, threads=1)),
}


@pytest.mark.parametrize(("table", "plan"), PLANS.values(), ids=PLANS)
def test_the_plan_follows_from_the_measured_throughput(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, table: dict[tuple[int, int, int], float], plan: ConcurrencyPlan
) -> None:
    monkeypatch.setattr(autotune, "images_per_s", rates_of(table))
    assert find_plan(lambda threads: classifier, b"", 4) == plan


def test_a_real_model_is_measured_with_one_and_with_all_threads(artifact_template: Path, classifier: Classifier) -> None:
    opened: list[int] = []

    def open_with(threads: int) -> Classifier:
        opened.append(threads)
        return Classifier.open(artifact_template, threads=threads, verify=False)

    plan = find_plan(open_with, sample_image(classifier), 2, budget_s=0.1)
    assert opened == [1, 2]
    assert (plan.workers, plan.threads) in ((2, 1), (1, 2))


def test_on_one_core_only_the_batch_size_is_chosen(classifier: Classifier) -> None:
    plan = find_plan(lambda threads: classifier, sample_image(classifier), 1, budget_s=0.05)
    assert (plan.workers, plan.threads) == (1, 1)


def test_a_throughput_is_positive_however_little_time_there_is(classifier: Classifier) -> None:
    assert images_per_s(classifier, sample_image(classifier), ConcurrencyPlan(workers=2, threads=1), seconds=0) > 0


def test_a_plan_is_saved_for_its_model_and_number_of_cores(classifier: Classifier, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plan = ConcurrencyPlan(workers=3, threads=1, batch=2)
    assert load_plan(classifier, 4, cache) is None
    save_plan(plan, classifier, 4, cache)
    assert load_plan(classifier, 4, cache) == plan
    assert load_plan(classifier, 2, cache) is None
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


DAMAGED = {
    "not JSON": "{",
    "not an object": "[]",
    "a field is missing": json.dumps({"workers": 1, "threads": 1}),
    "more workers than cores": json.dumps({"workers": 400, "threads": 1, "batch": 1}),
    "a batch of 0": json.dumps({"workers": 1, "threads": 1, "batch": 0}),
    "not numbers": json.dumps({"workers": "x", "threads": 1, "batch": 1}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_plan_file_is_ignored(classifier: Classifier, tmp_path: Path, text: str) -> None:
    save_plan(ConcurrencyPlan(workers=1, threads=1), classifier, 4, tmp_path / "cache")
    [path] = (tmp_path / "cache").iterdir()
    path.write_text(text)
    assert load_plan(classifier, 4, tmp_path / "cache") is None


def test_a_folder_that_others_may_write_to_is_not_used(classifier: Classifier, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    save_plan(ConcurrencyPlan(workers=1, threads=1), classifier, 4, cache)
    os.chmod(cache, 0o777)
    assert load_plan(classifier, 4, cache) is None
    link = tmp_path / "link"
    os.chmod(cache, 0o700)
    link.symlink_to(cache)
    assert load_plan(classifier, 4, link) is None
    assert load_plan(classifier, 4, cache) is not None


def test_a_cache_that_cannot_be_written_raises_no_error(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    save_plan(ConcurrencyPlan(workers=1, threads=1), classifier, 4, tmp_path / "file" / "cache")
    save_plan(ConcurrencyPlan(workers=1, threads=1), classifier, 4, None)
    assert load_plan(classifier, 4, None) is None


# --- on a machine that has other work too -----------------------------------------------------------------------------

NARROW, WIDE = ConcurrencyPlan(workers=2, threads=1), ConcurrencyPlan(workers=1, threads=2)
DISTURBED = (1.0, 1.0, 0.2, 1.0)
"""The share of its speed that other work leaves to each measurement, in turn."""
SPEEDS: dict[str, tuple[dict[tuple[int, int], float], ConcurrencyPlan]] = {
    "two workers are faster": ({(2, 1): 160, (1, 1): 100}, NARROW),
    "one worker with all cores is about as fast": ({(2, 1): 100, (1, 1): 98}, WIDE),
    "batches are too little faster": ({(2, 1): 100, (1, 1): 60, (2, 8): 109}, NARROW),
    "batches of four": ({(2, 1): 100, (1, 1): 60, (2, 4): 120}, ConcurrencyPlan(workers=2, threads=1, batch=4)),
}


@pytest.mark.parametrize(("speeds", "expected"), SPEEDS.values(), ids=SPEEDS)
@pytest.mark.parametrize("shift", range(4))
def test_the_faster_plan_is_found_although_other_work_slows_a_quarter_of_the_measurements(
    speeds: dict[tuple[int, int], float],
    expected: ConcurrencyPlan,
    shift: int,
    artifact_template: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: Iterator[float] = itertools.islice(itertools.cycle(DISTURBED), shift, None)

    def speed(classifier: Classifier, image: bytes, plan: ConcurrencyPlan, seconds: float) -> float:
        return speeds.get((plan.workers, plan.batch), 50) * next(left)

    monkeypatch.setattr(autotune, "images_per_s", speed)
    classifier = Classifier.open(artifact_template, threads=1, verify=False)
    assert find_plan(lambda threads: classifier, b"", 2) == expected
