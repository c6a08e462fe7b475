"""Comparison of two sets of outputs, on a handful of numbers."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from edgeline.export.parity.compare import Outputs, compare, raise_problems
from edgeline.export.parity.report import Comparison
from edgeline.pipeline.config import VerifyConfig
from edgeline.serve.errors import VerificationError

THRESHOLDS = VerifyConfig()
WIDE = THRESHOLDS.model_copy(update={"max_difference": 0.5, "margin": 0.01})
"""Wider than any setting allows, so that only a change of the best class fails."""


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    exponents_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
    return exponents_NK / exponents_NK.sum(1, keepdims=True)


def outputs(*logits: list[float]) -> Outputs:
    logits_NK = np.array(logits, np.float32)
    return Outputs(softmax(logits_NK), logits_NK)


def names(count: int) -> list[str]:
    return [f"image {index}" for index in range(count)]


def compared(expected: Outputs, observed: Outputs, thresholds: VerifyConfig = THRESHOLDS) -> Comparison:
    return compare(names(len(observed.logits_NK)), expected, observed, thresholds, batch=7)


PLAIN = outputs([2, 0, 0], [0, 3, 0], [1, 0, 1.5], [0, 0.2, 0.1])


def changed(change: Callable[[np.ndarray, np.ndarray], object]) -> Outputs:
    probabilities_NK, logits_NK = PLAIN.probabilities_NK.copy(), PLAIN.logits_NK.copy()
    change(probabilities_NK, logits_NK)
    return Outputs(probabilities_NK, logits_NK)


def test_equal_outputs_have_no_problems() -> None:
    found = compared(PLAIN, PLAIN)
    assert found.problems == found.flips == ()
    assert (found.max_difference, found.max_logit_difference, found.top1_agreement, found.images) == (0, 0, 1, 4)


def test_rounding_has_no_problems_and_is_measured() -> None:
    found = compared(PLAIN, outputs(*(PLAIN.logits_NK + np.float32(3e-5)).tolist()))
    assert found.problems == ()
    assert found.max_logit_difference == pytest.approx(1e-5, rel=0.1), "a share of the largest logit, 3"


def test_a_probability_over_the_threshold_is_a_problem_with_its_size() -> None:
    def nudge(probabilities_NK: np.ndarray, logits_NK: np.ndarray) -> None:
        probabilities_NK[2] += [2e-3, -2e-3, 0]

    found = compared(PLAIN, changed(nudge))
    assert found.problems == ("the probabilities of 1 of 4 images differ by more than 0.0001, at most by 0.002",)
    assert (found.worst[0].image, found.worst[0].logit_difference) == ("image 2", 0)


def test_logits_over_the_threshold_are_a_problem_although_every_probability_is_right() -> None:
    def nudge(probabilities_NK: np.ndarray, logits_NK: np.ndarray) -> None:
        logits_NK[1] += 0.3

    found = compared(PLAIN, changed(nudge))
    assert found.problems == (
        "the logits, as shares of the largest, of 1 of 4 images differ by more than 0.0001, at most by 0.1",
    )
    assert (found.max_difference, found.worst[0].image) == (0, "image 1")


def test_small_logits_are_compared_absolutely() -> None:
    small = outputs([1e-3, 0], [0, 2e-3])
    found = compared(small, outputs([1e-3, 0], [0, 2.05e-3]))
    assert found.max_logit_difference == pytest.approx(5e-5, rel=1e-3)
    assert found.problems == ()


FLIPS: dict[str, tuple[list[float], list[float], tuple[str, ...]]] = {
    "where PyTorch is not clear": ([0, 0.01, 0], [0.01, 0, 0], ()),
    "where PyTorch is clear": (
        [0, 0.4, 0],
        [0.4, 0, 0],
        ("1 images have another best class although PyTorch is clear (margin over 0.01)",),
    ),
}


@pytest.mark.parametrize(("expected", "observed", "problems"), FLIPS.values(), ids=FLIPS)
def test_a_best_class_may_change(expected: list[float], observed: list[float], problems: tuple[str, ...]) -> None:
    rest = [[2.0, 0, 0], [0, 0, 2.0], [0, 2.0, 0]]
    found = compared(outputs(expected, *rest), outputs(observed, *rest), WIDE)
    assert found.problems == problems
    assert found.top1_agreement == 0.75
    assert found.top1_agreement_over_margin == (0.75 if problems else 1)
    [flip] = found.flips
    assert flip.image == "image 0"
    assert (flip.margin > WIDE.margin) == bool(problems)


def test_agreement_over_the_margin_is_whole_where_no_image_is_clear() -> None:
    torn, other = outputs([0, 0.001], [0.001, 0]), outputs([0.001, 0], [0, 0.001])
    found = compared(torn, other, WIDE)
    assert (found.top1_agreement, found.top1_agreement_over_margin) == (0, 1)


def test_the_same_output_for_every_image_is_a_problem() -> None:
    same = outputs(*[[1, 2, 3]] * 4)
    assert compared(same, same).problems == ("the file returns the same output for every image",)


def test_the_same_probabilities_are_not_a_problem_where_the_logits_differ() -> None:
    sure = outputs([400, 0], [500, 0], [600, 0])
    assert (sure.probabilities_NK == [1, 0]).all()
    assert compared(sure, sure).problems == ()


def test_a_single_image_may_have_any_output() -> None:
    assert compared(outputs([1, 2]), outputs([1, 2])).problems == ()


def test_probabilities_that_do_not_sum_to_one_are_a_problem() -> None:
    def unscale(probabilities_NK: np.ndarray, logits_NK: np.ndarray) -> None:
        probabilities_NK[:] = logits_NK

    problems = compared(PLAIN, changed(unscale), WIDE).problems
    assert "the file's probabilities do not sum to 1 (off by 2); is the softmax missing?" in problems


def spoil(number: float, *, logits: bool) -> Outputs:
    def put(probabilities_NK: np.ndarray, logits_NK: np.ndarray) -> None:
        (logits_NK if logits else probabilities_NK)[1, 2] = number

    return changed(put)


NOT_FINITE = {
    "NaN from PyTorch": (
        spoil(np.nan, logits=False),
        PLAIN,
        "PyTorch returns NaN or infinite probabilities or logits for image 1",
    ),
    "an infinite logit of PyTorch": (spoil(np.inf, logits=True), PLAIN, "PyTorch returns NaN .* for image 1"),
    "NaN from the file": (PLAIN, spoil(np.nan, logits=False), "the file returns NaN .* for image 1"),
    "an infinite logit of the file": (PLAIN, spoil(-np.inf, logits=True), "the file returns NaN .* for image 1"),
    "NaN from both": (spoil(np.nan, logits=True), spoil(np.nan, logits=True), "PyTorch returns NaN .*the file returns NaN"),
    "infinity from both": (
        spoil(np.inf, logits=True),
        spoil(np.inf, logits=True),
        "PyTorch returns NaN .*the file returns NaN",
    ),
}


@pytest.mark.parametrize(("expected", "observed", "reason"), NOT_FINITE.values(), ids=NOT_FINITE)
def test_nan_and_infinity_are_never_equal(expected: Outputs, observed: Outputs, reason: str) -> None:
    found = compared(expected, observed)
    assert found.worst[0].image == "image 1"
    assert "1 of 4 images differ" in "; ".join(found.problems)
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(VerificationError, match=reason):
        raise_problems(found.problems, [found])


SHAPES = {
    "fewer rows": outputs([1, 2, 3]),
    "fewer classes": outputs(*[[1, 2]] * 4),
    "fewer logits": Outputs(PLAIN.probabilities_NK, PLAIN.logits_NK[:, :2]),
}


@pytest.mark.parametrize("observed", SHAPES.values(), ids=SHAPES)
def test_other_shapes_are_rejected(observed: Outputs) -> None:
    with pytest.raises(VerificationError, match=r"batch 7: the file returns shape \(.*\), PyTorch \(4, 3\)"):
        compared(PLAIN, observed)


def test_the_ten_worst_images_are_kept_in_order() -> None:
    expected = outputs(*[[float(i % 3 == k) for k in range(3)] for i in range(30)])
    observed = Outputs(expected.probabilities_NK, expected.logits_NK + np.arange(30, dtype=np.float32)[:, None] / 100)
    found = compared(expected, observed)
    assert [entry.image for entry in found.worst] == [f"image {i}" for i in range(29, 19, -1)]


def test_an_error_names_the_worst_images_of_all_batch_sizes_and_every_problem() -> None:
    fine = compared(PLAIN, PLAIN)
    broken = compared(PLAIN, outputs([2, 0, 0], [0, 3, 0.2], [1, 0.1, 1.5], [0, 0.2, 0.1]))
    with pytest.raises(
        VerificationError, match="batch 7: one; batch 7: another; worst images: image 1 .*, image 2 .*nothing is"
    ):
        raise_problems(["batch 7: one", "batch 7: another"], [fine, broken])


def test_no_problems_raise_nothing() -> None:
    raise_problems([], [])
