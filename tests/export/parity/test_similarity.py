from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeline.export.parity.compare import Outputs
from edgeline.export.parity.report import AccuracyDrop, OutputSimilarity
from edgeline.export.parity.similarity import EXACT_DB, compare_outputs, drop_between, failed_thresholds, sqnr_db
from edgeline.export.tolerances import FLOAT32
from edgeline.pipeline.evaluation.metrics import paired_drop, softmax
from edgeline.pipeline.thresholds import Fp16Thresholds, Int8Thresholds


def outputs(logits_NK: np.ndarray) -> Outputs:
    logits_NK = np.asarray(logits_NK, np.float32)
    return Outputs(softmax(logits_NK).astype(np.float32), logits_NK)


@pytest.fixture
def reference() -> Outputs:
    return outputs(np.random.default_rng(0).normal(0, 4, (200, 7)))


def noisy(reference: Outputs, scale: float) -> Outputs:
    return outputs(reference.logits_NK + np.random.default_rng(1).normal(0, scale, reference.logits_NK.shape))


def test_a_model_is_equal_to_itself_in_every_figure(reference: Outputs) -> None:
    similarity = compare_outputs(reference, reference)
    assert (similarity.top1_agreement, similarity.clear_agreement, similarity.top5_agreement, similarity.flips) == (1, 1, 1, 0)
    assert (similarity.sqnr_db, similarity.kl, similarity.max_difference) == (EXACT_DB, 0, 0)
    assert similarity.cosine == pytest.approx(1)
    assert failed_thresholds(similarity, None, Fp16Thresholds()) == []


@given(st.floats(0.001, 2))
def test_the_noise_ratio_is_that_of_the_noise(scale: float) -> None:
    signal = np.full(1000, 3.0)
    noise = np.where(np.arange(1000) % 2, scale, -scale)
    assert sqnr_db(signal, signal + noise) == pytest.approx(20 * np.log10(3 / scale), abs=1e-6)


def test_more_noise_is_less_similar(reference: Outputs) -> None:
    near, far = compare_outputs(reference, noisy(reference, 0.1)), compare_outputs(reference, noisy(reference, 1.0))
    assert near.sqnr_db > far.sqnr_db + 15
    assert near.kl < far.kl
    assert near.top1_agreement > far.top1_agreement
    assert near.top5_agreement > far.top5_agreement


def test_a_flip_counts_by_how_clear_the_reference_was() -> None:
    expected = outputs(np.array([[0.0, 0.05, -9], [5, 0, -9], [0, 5, -9]]))
    tie_broken = outputs(np.array([[0.05, 0.0, -9], [5, 0, -9], [0, 5, -9]]))
    similarity = compare_outputs(expected, tie_broken)
    assert (similarity.flips, similarity.clear_agreement) == (1, 1)
    assert similarity.top1_agreement == pytest.approx(2 / 3)
    assert similarity.largest_flipped_margin == pytest.approx(0.025, abs=1e-3)
    clear_flip = outputs(np.array([[0.0, 0.05, -9], [0, 5, -9], [0, 5, -9]]))
    assert compare_outputs(expected, clear_flip).clear_agreement == 0.5


def test_a_drop_is_of_the_same_images_and_has_an_interval() -> None:
    expected = outputs(np.eye(4)[[0, 1, 2, 3]] * 5)
    observed = outputs(np.eye(4)[[0, 1, 3, 0]] * 5)
    drop = drop_between(expected, observed, np.array([0, 1, 2, 0]))
    assert (drop.lost, drop.gained, drop.drop_points) == (1, 1, 0)
    assert (drop.reference_top1, drop.top1, drop.images) == (0.75, 0.75, 4)
    low, high = drop.drop_interval_points
    assert low < 0 < high


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_the_interval_of_a_drop_contains_it_and_changes_sign_with_it(lost: int, gained: int, same: int) -> None:
    total = lost + gained + same + 1
    drop, low, high = paired_drop(lost, gained, total)
    assert -1 <= low <= high <= 1
    assert drop == pytest.approx((lost - gained) / total)
    turned = paired_drop(gained, lost, total)
    assert turned == pytest.approx((-drop, -high, -low))


BEYOND: dict[str, tuple[dict[str, float], str]] = {
    "min_sqnr_db": ({"sqnr_db": 14.9}, "SQNR 14.9 dB, at least 15 required"),
    "min_agreement": ({"top1_agreement": 0.9}, "same best class on 90.00% of images, at least 96.00% required"),
    "min_clear_agreement": ({"clear_agreement": 0.9}, "same best class on 90.00% of the images on which the reference"),
    "max_kl": ({"kl": 0.03}, "KL divergence 0.03, at most 0.02 allowed"),
    "max_difference": ({"max_difference": 0.95}, "a probability differs by 0.95, at most 0.9 allowed"),
    "max_drop": ({"drop_points": 1.5}, "accuracy drops by 1.50 points (95 % interval -0.50 to 3.00), at most 1 allowed"),
}
"""For each threshold a figure that is beyond it, and what is reported."""
WITHIN = OutputSimilarity(
    images=200,
    sqnr_db=30,
    cosine=1,
    kl=0.001,
    max_difference=0.1,
    top1_agreement=0.99,
    clear_agreement=1,
    top5_agreement=1,
    flips=2,
    largest_flipped_margin=0.01,
)
SMALL_DROP = AccuracyDrop(
    reference_top1=0.9,
    top1=0.895,
    top1_interval=(0.85, 0.93),
    images=200,
    lost=2,
    gained=1,
    drop_points=0.5,
    drop_interval_points=(-0.5, 3),
)


def test_figures_within_every_threshold_pass() -> None:
    assert failed_thresholds(WITHIN, SMALL_DROP, Int8Thresholds()) == []


def test_every_precision_sets_every_threshold_itself() -> None:
    assert set(Fp16Thresholds.__annotations__) == set(Int8Thresholds.model_fields)
    assert FLOAT32.model_fields_set == set(Int8Thresholds.model_fields)


def test_every_threshold_is_compared() -> None:
    assert BEYOND.keys() == Int8Thresholds.model_fields.keys() == Fp16Thresholds.model_fields.keys()


@pytest.mark.parametrize("threshold", BEYOND)
def test_a_figure_beyond_one_threshold_fails_that_one_alone(threshold: str) -> None:
    figure, words = BEYOND[threshold]
    similarity, drop = (
        (WITHIN, SMALL_DROP.model_copy(update=figure)) if threshold == "max_drop" else (WITHIN.model_copy(update=figure), None)
    )
    [problem] = failed_thresholds(similarity, drop, Int8Thresholds())
    assert problem.startswith(words)


def test_lost_accuracy_is_reported_with_its_interval(reference: Outputs) -> None:
    targets_N = reference.logits_NK.argmax(1)
    drop = drop_between(reference, noisy(reference, 2.0), targets_N)
    [problem] = [p for p in failed_thresholds(compare_outputs(reference, reference), drop, Int8Thresholds()) if "accuracy" in p]
    assert f"drops by {drop.drop_points:.2f} points" in problem
    assert "95 % interval" in problem


def test_nan_fails_whatever_the_thresholds(reference: Outputs) -> None:
    logits_NK = reference.logits_NK.copy()
    logits_NK[3, 2] = np.nan
    broken = Outputs(reference.probabilities_NK, logits_NK)
    assert failed_thresholds(compare_outputs(reference, broken), None, Int8Thresholds()) == [
        "its outputs contain NaN or infinity"
    ]


few = settings(max_examples=60, derandomize=True)
logits = st.tuples(st.integers(1, 12), st.integers(2, 9)).flatmap(
    lambda shape: st.tuples(*[arrays.arrays(np.float32, shape, elements=st.floats(-20, 20, width=32))] * 2)
)


@few
@given(logits)
def test_shares_are_shares_and_a_divergence_is_never_negative(pair: tuple[np.ndarray, np.ndarray]) -> None:
    similarity = compare_outputs(*map(outputs, pair))
    for share in (similarity.top1_agreement, similarity.clear_agreement, similarity.top5_agreement, similarity.max_difference):
        assert 0 <= share <= 1
    assert similarity.flips == round(similarity.images * (1 - similarity.top1_agreement))
    assert similarity.kl >= -1e-9
    assert -1 - 1e-9 <= similarity.cosine <= 1 + 1e-9
    assert 0 <= similarity.largest_flipped_margin <= 1
    assert similarity.finite


@few
@given(logits, st.randoms(use_true_random=False))
def test_neither_the_order_of_the_images_nor_that_of_the_classes_matters(
    pair: tuple[np.ndarray, np.ndarray], random: Any
) -> None:
    rows, columns = (random.sample(range(size), size) for size in pair[0].shape)
    plain = compare_outputs(*map(outputs, pair))
    mixed = compare_outputs(*(outputs(logits_NK[rows]) for logits_NK in pair))
    for name in ("sqnr_db", "cosine", "kl", "max_difference", "top1_agreement", "clear_agreement", "top5_agreement", "flips"):
        assert getattr(mixed, name) == pytest.approx(getattr(plain, name), rel=1e-6, abs=1e-9)
    mixed = compare_outputs(*(outputs(logits_NK[:, columns]) for logits_NK in pair))
    for name in ("sqnr_db", "cosine", "kl", "max_difference"):  # equal logits are ordered by their index
        assert getattr(mixed, name) == pytest.approx(getattr(plain, name), rel=1e-5, abs=1e-6)


@few
@given(arrays.arrays(np.float64, 20, elements=st.floats(-10, 10)), st.floats(0.01, 100), st.integers(0, 9))
def test_the_noise_ratio_has_no_unit_and_falls_as_noise_grows(signal: np.ndarray, unit: float, seed: int) -> None:
    signal = signal + np.sign(signal) + (signal == 0)
    noise = np.random.default_rng(seed).normal(0, 0.1, signal.shape)
    ratio = sqnr_db(signal, signal + noise)
    assert sqnr_db(unit * signal, unit * (signal + noise)) == pytest.approx(ratio, abs=1e-6)
    assert sqnr_db(signal, signal + 2 * noise) == pytest.approx(ratio - 20 * np.log10(2), abs=1e-6)
    assert sqnr_db(signal, signal) == EXACT_DB
