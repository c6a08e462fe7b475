"""The test that decides about a new version."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeline.export.promotion.decision import PairedAnswers, decide
from edgeline.pipeline.config import PromoteConfig

POLICY = PromoteConfig()


def answers(right: list[tuple[bool, bool]], *, classes: int = 1, groups: list[str] | None = None) -> PairedAnswers:
    """Answers that are right or wrong as given, before and after, the images in turn of each class."""
    truth = [f"class {i % classes}" for i in range(len(right))]
    before, after = ([label if each[side] else "other" for label, each in zip(truth, right, strict=True)] for side in (0, 1))
    return PairedAnswers(truth=truth, before=before, after=after, groups=groups or [str(i) for i in range(len(right))])


def pairs(both: int, lost: int, gained: int, neither: int = 0) -> list[tuple[bool, bool]]:
    found = [(True, True)] * both + [(True, False)] * lost + [(False, True)] * gained + [(False, False)] * neither
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        (pairs(900, 5, 40), "better"),
        (pairs(990, 5, 5), "not worse"),
        (pairs(900, 60, 5), "worse"),
        (pairs(95, 2, 2), "too few images"),
        ([], "too few images"),
        (pairs(500, 0, 0), "not worse"),
        (pairs(20, 0, 0), "too few images"),
    ],
)
def test_a_version_is_promoted_only_if_the_images_show_that_it_is_not_worse(
    right: list[tuple[bool, bool]], verdict: str
) -> None:
    decision = decide({"onnx-fp32": answers(right)}, POLICY)
    assert decision.verdict == verdict
    assert decision.promoted == (verdict in ("better", "not worse"))
    assert verdict.split()[0] in decision.reason


def test_too_few_images_is_an_answer_with_the_number_that_would_tell() -> None:
    small = decide({"onnx-fp32": answers(pairs(95, 2, 2))}, POLICY)
    needed = small.variants[0].images + small.variants[0].more_images
    assert f"about {needed - 99:,} more test images" in small.reason
    share = 2 / 99
    enough = pairs(needed - 2 * round(share * needed), round(share * needed), round(share * needed))
    assert decide({"onnx-fp32": answers(enough)}, POLICY).verdict == "not worse"


def test_one_class_that_is_lost_decides_against_a_version_that_is_as_accurate_in_all() -> None:
    right = pairs(1000, 0, 0)
    for position in range(0, 400, 40):
        right[position] = (True, False)  # all of class 0
        right[position + 1] = (False, True)
    decision = decide({"onnx-fp32": answers(right, classes=20)}, POLICY)
    assert decision.verdict == "worse"
    assert "worse at class 0 (10 lost, 0 gained of 50" in decision.reason
    assert decision.variants[0].classes[0].p_value == pytest.approx(20 * 0.5**10)


def test_the_worst_variant_decides() -> None:
    good, bad = answers(pairs(990, 5, 5)), answers(pairs(900, 60, 5))
    decision = decide({"onnx-fp32": good, "onnx-int8": bad}, POLICY)
    assert [each.verdict for each in decision.variants] == ["not worse", "worse"]
    assert (decision.verdict, decision.promoted) == ("worse", False)
    assert "onnx-int8" in decision.reason


def test_images_of_one_group_count_for_less_than_independent_ones() -> None:
    right = [(True, True)] * 960 + [(True, False)] * 8 + [(False, True)] * 8 + [(False, False)] * 24
    alone = decide({"onnx-fp32": answers(right)}, PromoteConfig(margin=0.012))
    together = decide({"onnx-fp32": answers(right, groups=[str(i // 8) for i in range(1000)])}, PromoteConfig(margin=0.012))
    assert alone.verdict == "not worse"
    assert together.verdict == "too few images"
    assert together.variants[0].accuracy.low < alone.variants[0].accuracy.low


def test_a_smaller_margin_asks_for_more() -> None:
    right = {"onnx-fp32": answers(pairs(990, 5, 5))}
    assert decide(right, PromoteConfig(margin=0.02)).promoted
    assert not decide(right, PromoteConfig(margin=0.002)).promoted
    assert not decide(right, PromoteConfig(margin=0.008, confidence=0.999)).promoted


@given(
    right=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300),
    classes=st.integers(1, 9),
    margin=st.floats(0.001, 0.5),
)
def test_every_figure_is_consistent_whatever_the_answers_are(
    right: list[tuple[bool, bool]], classes: int, margin: float
) -> None:
    policy = PromoteConfig(margin=margin)
    decision = decide({"onnx-fp32": answers(right, classes=classes)}, policy)
    found = decision.variants[0]
    for bound in (found.accuracy, found.macro_recall):
        assert -1 <= bound.low <= bound.high <= 1
        assert all(map(math.isfinite, (bound.low, bound.gain, bound.high)))
    assert (found.more_images > 0) == (found.verdict == "too few images")
    assert sum(each.lost for each in found.classes) == found.lost
    if decision.promoted:
        assert found.accuracy.low >= -margin
        mirrored = answers([(after, before) for before, after in right], classes=classes)
        assert decide({"onnx-fp32": mirrored}, policy).verdict != "better"
    assert decision.model_validate_json(decision.model_dump_json()) == decision
