"""How the cores are used: found by trying, remembered, and not taken from anybody."""

import json
import os
import stat
from pathlib import Path

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.inference import autotune as calibration
from edgeline.serve.inference.autotune import calibrate, remember_plan, remembered_plan, sample_image
from edgeline.serve.inference.scheduler import ConcurrencyPlan


@pytest.fixture(scope="module")
def classifier(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template, threads=1)


def rates_of(table: dict[tuple[int, int, int], float]) -> object:
    return lambda classifier, image, plan, seconds: table.get((plan.runners, plan.threads, plan.batch), 1.0)


PLANS = {
    "many runners are faster": ({(4, 1, 1): 100.0, (1, 4, 1): 60.0}, ConcurrencyPlan(runners=4, threads=1)),
    "a wide one is as fast, and sooner": ({(4, 1, 1): 100.0, (1, 4, 1): 99.0}, ConcurrencyPlan(runners=1, threads=4)),
    "batches bring something": ({(4, 1, 1): 100.0, (4, 1, 4): 120.0}, ConcurrencyPlan(runners=4, threads=1, batch=4)),
    "batches bring little": ({(4, 1, 1): 100.0, (4, 1, 8): 109.0}, ConcurrencyPlan(runners=4, threads=1)),
}


@pytest.mark.parametrize(("table", "plan"), PLANS.values(), ids=PLANS)
def test_the_plan_is_the_one_that_the_rates_call_for(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, table: dict[tuple[int, int, int], float], plan: ConcurrencyPlan
) -> None:
    monkeypatch.setattr(calibration, "images_per_s", rates_of(table))
    assert calibrate(lambda threads: classifier, b"", 4) == plan


def test_a_real_model_is_tried_in_the_time_it_is_given(artifact_template: Path, classifier: Classifier) -> None:
    opened: list[int] = []

    def open_with(threads: int) -> Classifier:
        opened.append(threads)
        return Classifier.open(artifact_template, threads=threads, prove=False)

    plan = calibrate(open_with, sample_image(classifier), 2, budget_s=0.1)
    assert opened == [1, 2]
    assert (plan.runners, plan.threads) in ((2, 1), (1, 2))


def test_one_core_leaves_nothing_to_choose_but_the_batch(classifier: Classifier) -> None:
    plan = calibrate(lambda threads: classifier, sample_image(classifier), 1, budget_s=0.05)
    assert (plan.runners, plan.threads) == (1, 1)


def test_a_plan_is_remembered_for_its_model_and_cores(classifier: Classifier, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plan = ConcurrencyPlan(runners=3, threads=1, batch=2)
    assert remembered_plan(classifier, 4, cache) is None
    remember_plan(plan, classifier, 4, cache)
    assert remembered_plan(classifier, 4, cache) == plan
    assert remembered_plan(classifier, 2, cache) is None
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


DAMAGED = {
    "not JSON": "{",
    "another shape": "[]",
    "a part is missing": json.dumps({"runners": 1, "threads": 1}),
    "more runners than cores": json.dumps({"runners": 400, "threads": 1, "batch": 1}),
    "a batch of nothing": json.dumps({"runners": 1, "threads": 1, "batch": 0}),
    "no numbers": json.dumps({"runners": "x", "threads": 1, "batch": 1}),
}


@pytest.mark.parametrize("note", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_note_is_as_good_as_none(classifier: Classifier, tmp_path: Path, note: str) -> None:
    remember_plan(ConcurrencyPlan(runners=1, threads=1), classifier, 4, tmp_path / "cache")
    [path] = (tmp_path / "cache").iterdir()
    path.write_text(note)
    assert remembered_plan(classifier, 4, tmp_path / "cache") is None


def test_a_folder_that_others_may_write_to_is_not_used(classifier: Classifier, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    remember_plan(ConcurrencyPlan(runners=1, threads=1), classifier, 4, cache)
    os.chmod(cache, 0o777)
    assert remembered_plan(classifier, 4, cache) is None
    link = tmp_path / "link"
    os.chmod(cache, 0o700)
    link.symlink_to(cache)
    assert remembered_plan(classifier, 4, link) is None
    assert remembered_plan(classifier, 4, cache) is not None


def test_a_place_that_cannot_be_written_costs_nothing_but_the_note(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remember_plan(ConcurrencyPlan(runners=1, threads=1), classifier, 4, tmp_path / "file" / "cache")
    remember_plan(ConcurrencyPlan(runners=1, threads=1), classifier, 4, None)
    assert remembered_plan(classifier, 4, None) is None
