"""Ranges from histograms cut off outliers, and lose less than the extremes do."""

import numpy as np
import pytest

from edgeline.export.quantization.histograms import BINS, Histograms, collect, least_squares_range, percentile_range
from edgeline.export.quantization.static_int8 import Quantizable, make_ready, measure_ranges
from tests.support.small_graphs import IMAGENET, SIZE, convolutional

BATCHES = [np.random.default_rng(seed).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8) for seed in range(3)]


@pytest.fixture(name="ready", scope="module")
def _ready() -> Quantizable:
    return make_ready(convolutional(*IMAGENET, layers=3))


@pytest.fixture(name="histograms", scope="module")
def _histograms(ready: Quantizable) -> Histograms:
    return collect(ready, BATCHES, measure_ranges(ready, BATCHES))


def counted(values: np.ndarray) -> tuple[float, float, np.ndarray]:
    low, high = float(values.min()), float(values.max())
    return low, high, np.histogram(values, BINS, (low, high))[0]


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(np.mean((values - (np.clip(np.round((values - low) / step), 0, 255) * step + low)) ** 2))


def test_every_value_of_every_image_is_counted(ready: Quantizable, histograms: Histograms) -> None:
    [input_name] = [name for name in histograms.tensors if name == ready.pixels]
    counts_B = histograms.counts_TB[histograms.tensors.index(input_name)]
    assert counts_B.sum() == 3 * 4 * SIZE * SIZE * 3
    assert (histograms.counts_TB.sum(1) > 0).all()


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_a_range_lies_within_the_extremes_and_some_are_narrower(histograms: Histograms, method: str) -> None:
    found = histograms.ranges(method)
    widths = []
    for name, low, high in zip(histograms.tensors, histograms.low_T, histograms.high_T, strict=True):
        least, most = (bound.item() for bound in found[name].range_value)
        assert min(low, 0) - 1e-4 <= least <= most <= max(high, 0) + 1e-4
        widths.append((most - least) / max(high - low, 1e-9))
    assert min(widths) < 0.99


def test_a_percentile_range_leaves_out_one_value_of_ten_thousand_at_each_end() -> None:
    values = np.append(np.random.default_rng(0).uniform(-1, 1, 100_000), [40.0, -40.0])
    assert percentile_range(*counted(values)) == pytest.approx((-1, 1), abs=0.02)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).laplace(2, 1, 50_000),
        np.append(np.random.default_rng(2).normal(0, 1, 50_000), [60.0]),
        np.maximum(np.random.default_rng(3).standard_t(3, 50_000), 0),
        np.random.default_rng(4).normal(-3, 1, 50_000),
    ],
    ids=["uneven tails", "one outlier", "only positive, long tail", "only negative"],
)
def test_no_other_range_has_a_clearly_smaller_squared_error(values: np.ndarray) -> None:
    low, high = least_squares_range(*counted(values))
    assert low <= 0 <= high
    fractions = np.linspace(0.02, 1, 40)
    least, most = min(values.min(), 0.0), max(values.max(), 0.0)
    others = [(least * one, most * other) for one in fractions for other in fractions]
    assert rounding_error(values, low, high) < 1.05 * min(rounding_error(values, *other) for other in others)


def test_the_least_squares_range_of_even_values_is_their_whole_range() -> None:
    assert least_squares_range(*counted(np.random.default_rng(4).uniform(0, 1, 50_000))) == pytest.approx((0, 1), abs=0.01)


def test_the_least_squares_range_of_a_laplace_distribution_is_the_published_one() -> None:
    # Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment", section 3: 9.89 b.
    low, high = least_squares_range(*counted(np.random.default_rng(1).laplace(0, 1, 2_000_000)))
    assert (low, high) == pytest.approx((-9.89, 9.89), abs=0.5)
