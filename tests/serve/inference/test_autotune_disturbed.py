"""The plan for a machine that has other work too."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.inference import autotune as calibration
from edgeline.serve.inference.autotune import calibrate
from edgeline.serve.inference.scheduler import ConcurrencyPlan

NARROW, WIDE = ConcurrencyPlan(runners=2, threads=1), ConcurrencyPlan(runners=1, threads=2)
DISTURBED = (1.0, 1.0, 0.2, 1.0)
"""What other work leaves of a trial's speed, in turn."""
SPEEDS: dict[str, tuple[dict[tuple[int, int], float], ConcurrencyPlan]] = {
    "two runners are faster": ({(2, 1): 160, (1, 1): 100}, NARROW),
    "a wide one is about as fast": ({(2, 1): 100, (1, 1): 98}, WIDE),
    "batches bring too little": ({(2, 1): 100, (1, 1): 60, (2, 8): 109}, NARROW),
    "batches of four": ({(2, 1): 100, (1, 1): 60, (2, 4): 120}, ConcurrencyPlan(runners=2, threads=1, batch=4)),
}


@pytest.mark.parametrize(("speeds", "expected"), SPEEDS.values(), ids=SPEEDS)
@pytest.mark.parametrize("shift", range(4))
def test_the_faster_plan_is_found_although_other_work_slows_a_quarter_of_the_trials(
    speeds: dict[tuple[int, int], float],
    expected: ConcurrencyPlan,
    shift: int,
    artifact_template: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: Iterator[float] = itertools.islice(itertools.cycle(DISTURBED), shift, None)

    def speed(classifier: Classifier, image: bytes, plan: ConcurrencyPlan, seconds: float) -> float:
        return speeds.get((plan.runners, plan.batch), 50) * next(left)

    monkeypatch.setattr(calibration, "images_per_s", speed)
    classifier = Classifier.open(artifact_template, threads=1, prove=False)
    assert calibrate(lambda threads: classifier, b"", 2) == expected
