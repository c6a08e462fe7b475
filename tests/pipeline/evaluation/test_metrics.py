import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.stats import binomtest

from edgeline.pipeline.evaluation.metrics import (
    TEMPERATURES,
    best_temperature,
    calibration_error,
    fisher_exact,
    nll,
    softmax,
    wilson_interval,
)

LOGITS = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-500, 500, width=32))


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_of_a_share_equals_that_of_scipy(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(0.95, "wilson")
    assert wilson_interval(*counts) == pytest.approx((expected.low, expected.high), rel=0, abs=1e-12)


# From the formula by hand: 0 of n gives z^2 / (n + z^2) as the upper end.
KNOWN_INTERVALS = {
    "none of 10": (0, 10, 0.0, 0.27753),
    "half of 10": (5, 10, 0.23659, 0.76341),
    "all of 10": (10, 10, 0.72247, 1.0),
}


@pytest.mark.parametrize(("correct", "total", "low", "high"), KNOWN_INTERVALS.values(), ids=KNOWN_INTERVALS)
def test_known_intervals(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-6)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_an_impossible_count_is_rejected(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {correct} of {total}"):
        wilson_interval(correct, total)


@given(LOGITS)
def test_probabilities_sum_to_one_and_have_the_order_of_the_logits(logits_NK: np.ndarray) -> None:
    probabilities_NK = softmax(logits_NK)
    assert probabilities_NK.dtype == np.float64
    np.testing.assert_allclose(probabilities_NK.sum(1), 1, rtol=0, atol=1e-12)
    chosen_N = probabilities_NK.argmax(1)
    np.testing.assert_allclose(logits_NK[np.arange(len(logits_NK)), chosen_N], logits_NK.max(1), rtol=0, atol=1e-9)


def test_known_probabilities() -> None:
    np.testing.assert_allclose(softmax(np.log(np.array([[1, 2, 5]], np.float32))), [[0.125, 0.25, 0.625]], rtol=0, atol=1e-7)


@given(LOGITS, st.integers(0, 2**31))
def test_the_negative_log_likelihood_agrees_with_the_probabilities(logits_NK: np.ndarray, seed: int) -> None:
    targets_N = np.random.default_rng(seed).integers(0, logits_NK.shape[1], len(logits_NK))
    true_N = softmax(logits_NK)[np.arange(len(logits_NK)), targets_N]
    expected = -np.log(np.maximum(true_N, 1e-300)).mean()
    if true_N.min() > 1e-300:
        assert nll(logits_NK, targets_N) == pytest.approx(expected, abs=1e-9)
    else:
        assert math.isfinite(nll(logits_NK, targets_N))


def two_classes(*confidences: float) -> np.ndarray:
    return np.array([[c, 1 - c] for c in confidences])


# Two bins from 0 to 1: confidences of two classes are always in the upper one, including 0.5.
CALIBRATIONS = {
    "confident and right": (two_classes(1, 1, 1, 1), [0, 0, 0, 0], 2, 0.0),
    "confident and wrong": (two_classes(1, 1, 1, 1), [1, 1, 1, 1], 2, 1.0),
    "well calibrated": (two_classes(0.75, 0.75, 0.75, 0.75), [0, 0, 0, 1], 2, 0.0),
    "overconfident": (two_classes(0.9, 0.9), [0, 1], 2, 0.4),
    "underconfident": (two_classes(0.6, 0.6), [0, 0], 10, 0.4),
    "errors in two bins add up": (two_classes(0.95, 0.55), [1, 0], 10, (0.95 + 0.45) / 2),
    "errors in one bin cancel": (two_classes(0.95, 0.55), [1, 0], 1, 0.25),
}


@pytest.mark.parametrize(("probabilities", "targets", "bins", "expected"), CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_known_calibration_errors(probabilities: np.ndarray, targets: list[int], bins: int, expected: float) -> None:
    assert calibration_error(probabilities, np.array(targets), bins) == pytest.approx(expected, abs=1e-12)


@given(LOGITS, st.integers(1, 30), st.integers(0, 2**31))
def test_a_calibration_error_is_between_zero_and_one(logits_NK: np.ndarray, bins: int, seed: int) -> None:
    targets_N = np.random.default_rng(seed).integers(0, logits_NK.shape[1], len(logits_NK))
    assert -1e-12 <= calibration_error(softmax(logits_NK), targets_N, bins) <= 1 + 1e-12


def drawn(temperature: float, images: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are overconfident by a factor: the classes are drawn from their softmax at that temperature."""
    rng = np.random.default_rng(7)
    calibrated_NK = rng.normal(0, 2, (images, 4))
    targets_N = (softmax(calibrated_NK).cumsum(1) > rng.random((images, 1))).argmax(1)
    return (calibrated_NK * temperature).astype(np.float32), targets_N


@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_the_temperature_that_classes_were_drawn_at_is_found(temperature: float) -> None:
    logits_NK, targets_N = drawn(temperature)
    found = best_temperature(logits_NK, targets_N)
    assert found == pytest.approx(temperature, rel=0.03)
    assert calibration_error(softmax(logits_NK / found), targets_N, 15) < 0.015


def test_without_mistakes_the_temperature_stays_at_its_lower_bound() -> None:
    assert best_temperature(np.eye(3, dtype=np.float32), np.arange(3)) == pytest.approx(0.5, rel=1e-3)


@given(LOGITS, st.integers(0, 2**31))
def test_the_temperature_is_within_its_bounds_and_does_not_raise_the_loss(logits_NK: np.ndarray, seed: int) -> None:
    targets_N = np.random.default_rng(seed).integers(0, logits_NK.shape[1], len(logits_NK))
    found = best_temperature(logits_NK, targets_N)
    assert TEMPERATURES[0] <= found <= TEMPERATURES[1]
    if nll(logits_NK, targets_N) < 100:
        assert nll(logits_NK / found, targets_N) <= nll(logits_NK, targets_N) + 1e-3


TABLE = st.tuples(st.integers(0, 300), st.integers(0, 300)).filter(sum)


@given(TABLE, TABLE)
@example((8, 0), (0, 8))
@example((250, 13), (900, 104))
def test_fishers_exact_test_equals_that_of_scipy(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert fisher_exact(one, other) == pytest.approx(stats.fisher_exact([one, other]).pvalue, rel=1e-6, abs=1e-12)
