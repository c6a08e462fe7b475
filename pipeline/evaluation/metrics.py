"""Intervals, tests, calibration and temperature scaling on plain arrays.

scikit-learn and scipy.stats have some of it, but take 5 s and over a second to import.

Shapes: N images, K classes.
"""

import math
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, log_softmax
from scipy.special import softmax as scipy_softmax

Z_95 = 1.959963984540054
TEMPERATURES = (0.5, 20.0)
"""Bounds of the temperature. Without a mistake in the validation split, the best one would be zero."""


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities of each row, in double precision."""
    return np.asarray(scipy_softmax(logits_NK.astype(np.float64), axis=1))


def nll(logits_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes."""
    return float(-log_softmax(logits_NK.astype(np.float64), axis=1)[np.arange(len(targets_N)), targets_N].mean())


def wilson_interval(correct: float, total: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927), which is valid near 0 and 1 too, unlike the normal approximation.

    Raises:
        ValueError: there are no images, or `correct` is not between 0 and `total`.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"need 0 <= correct <= total and a total over 0, got {correct} of {total}")
    share = correct / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, center - half), min(1.0, center + half)


def paired_drop(lost: float, gained: float, total: int, z: float = Z_95) -> tuple[float, float, float]:
    """Accuracy that the second of two classifiers loses on the same images, with its interval (Bonett and Price 2012).

    Args:
        lost: images that only the first one classifies correctly.
        gained: images that only the second one classifies correctly.
        total: all images.
        z: quantile of the normal distribution.

    Returns:
        The drop, and the bounds of its interval, as shares.
    """
    low_lost, low_gained = (lost + 1) / (total + 2), (gained + 1) / (total + 2)
    middle = low_lost - low_gained
    half = z * math.sqrt((low_lost + low_gained - middle**2) / (total + 2))
    return (lost - gained) / total, max(-1.0, middle - half), min(1.0, middle + half)


def fisher_exact(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Two-sided p-value of Fisher's exact test: whether two shares differ.

    Args:
        one: images of the first set that are classified correctly, and the others.
        other: those of the second set.
    """
    correct, total, images = one[0] + other[0], sum(one), sum(one) + sum(other)
    # Of all tables with these sums, by the number in the first cell.
    first = np.arange(max(0, total - (images - correct)), min(total, correct) + 1)
    ways = sum(gammaln(part + 1) for part in (first, total - first, correct - first, images - correct - total + first))
    shares = np.exp(ways.min() - ways)
    shares /= shares.sum()
    return float(min(1.0, shares[shares <= shares[one[0] - first[0]] * (1 + 1e-7)].sum()))


def calibration_error(probabilities_NK: np.ndarray, targets_N: np.ndarray, bins: int) -> float:
    """Expected calibration error over equal-width bins of confidence (Naeini et al. 2015), 0 to 1."""
    confidence_N = probabilities_NK.max(1)
    correct_N = probabilities_NK.argmax(1) == targets_N
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = [
        abs(correct_N[bin_N == b].mean() - confidence_N[bin_N == b].mean()) * np.mean(bin_N == b)
        for b in range(bins)
        if (bin_N == b).any()
    ]
    return float(sum(gaps))


def best_temperature(logits_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """Return the temperature, a divisor of the logits, that minimizes the negative log-likelihood.

    See Guo et al. 2017, "On Calibration of Modern Neural Networks". The result is within `TEMPERATURES`.
    """
    low, high = (math.log(t) for t in TEMPERATURES)
    found = minimize_scalar(lambda log_t: nll(logits_NK / math.exp(log_t), targets_N), bounds=(low, high), method="bounded")
    return math.exp(float(found.x))


def temperature_of(held_out: Path) -> float:
    """Return the best temperature for the logits in an .npz file with `logits` and `targets`, which training writes."""
    with np.load(held_out, allow_pickle=False) as arrays:
        return best_temperature(arrays["logits"], arrays["targets"])
