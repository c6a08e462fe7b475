"""Test a window of production images against an artifact's held-out images, with a stated rate of false alarms.

    found = compare_window(snapshot, reference, alpha=0.05)
    found.drifted                     # ["brightness", "entropy"]

For each statistic the question is whether the counts in its groups of bins could come from the same distribution as those of
the held-out images. The p-value is that of a permutation test with the chi-square statistic: given all images, every division
of them into a window and a reference is equally likely, so it holds for any number of images, however few, and for any
distribution. Where none of 202,000 drawn divisions differs as much, the p-value is an approximation: ten times that of the
chi-square distribution. Holm's correction over the statistics keeps the probability of any false alarm in a window at `alpha`.

A snapshot has counts and no images, so statistics are tested one by one, and dependent ones are corrected as if independent.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

GROUPS = 10
"""Bins are combined into at most so many groups."""
DRAWS = (2000, 200_000)
"""Divisions of the images that are drawn; the second number only if none of the first differs as much."""
TAIL = 10.0
"""Factor of the chi-square distribution's p-value, which is too small far out: up to 5 times at 2.5e-5, with groups of five."""
ENOUGH = 5
"""Expected count of a group from which the chi-square distribution is a good approximation (Cochran 1954)."""


class StatisticTest(NamedTuple):
    """The test of one statistic."""

    name: str
    images: int
    """Of the window that have it."""
    p_value: float
    """Corrected for the number of statistics."""
    mean: float | None
    """In the window; None for predicted classes."""
    reference_mean: float | None


class WindowResult(NamedTuple):
    """The tests of one window."""

    statistics: tuple[StatisticTest, ...]
    """The smallest p-value first."""
    alpha: float

    @property
    def drifted(self) -> list[str]:
        """The statistics that have changed by more than chance explains."""
        return [each.name for each in self.statistics if each.p_value <= self.alpha]


def compare_window(snapshot: dict[str, Any], reference: dict[str, Any], alpha: float, *, seed: int = 0) -> WindowResult:
    """Test every statistic that both have.

    Args:
        snapshot: of devices, as `serve.drift.snapshot.merge` returns it.
        reference: the artifact's own, with the same bins and labels.
        alpha: probability of any false alarm in this window.
        seed: of the drawn divisions; the same seed gives the same p-values.
    """
    raw: dict[str, float] = {}
    chance = np.random.default_rng(seed)
    for name, held in reference["statistics"].items():
        seen = snapshot["statistics"][name]
        if held["count"] and seen["count"]:
            counts = np.array([seen["counts"], held["counts"]])
            raw[name] = _p_value(_merge_neighbors(counts), chance)
    if reference["count"] and snapshot["count"]:
        counts = np.array([snapshot["predicted"]["counts"], reference["predicted"]["counts"]])
        raw["predicted"] = _p_value(_merge_rare(counts), chance)
    found, largest = [], 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[name]))
        seen, own = snapshot["statistics"].get(name, {}), reference["statistics"].get(name, {})
        count = seen.get("count", snapshot["count"])
        found.append(StatisticTest(name, count, largest, seen.get("mean"), own.get("mean")))
    return WindowResult(tuple(found), alpha)


def _merge_neighbors(counts_2B: np.ndarray) -> np.ndarray:
    """Combine neighboring bins into at most `GROUPS` groups with enough images: (2, G).

    The groups depend on the images of both together, and not on their division, so the permutation test stays exact.
    """
    enough, groups = _enough(counts_2B), [np.zeros(2, int)]
    for bin_2 in counts_2B.T:
        if groups[-1].sum() >= enough:
            groups.append(np.zeros(2, int))
        groups[-1] = groups[-1] + bin_2
    if len(groups) > 1 and groups[-1].sum() < enough:
        groups[-2:] = [groups[-2] + groups[-1]]
    return np.stack(groups, axis=1)


def _merge_rare(counts_2K: np.ndarray) -> np.ndarray:
    """Combine the classes with few images into one group, with the next rarest class if they are still few: (2, G)."""
    enough = _enough(counts_2K)
    order = np.argsort(counts_2K.sum(0), kind="stable")
    rare = 0
    while rare < len(order) and (counts_2K[:, order[rare]].sum() < enough or 0 < counts_2K[:, order[:rare]].sum() < enough):
        rare += 1
    groups = [counts_2K[:, order[:rare]].sum(1), *counts_2K[:, order[rare:]].T]
    return np.stack([group for group in groups if group.sum()], axis=1)


def _enough(counts_2B: np.ndarray) -> float:
    """Images of a group, so that it is expected to have `ENOUGH` in the smaller of the two."""
    total, smaller = int(counts_2B.sum()), int(counts_2B.sum(1).min())
    return max(total / GROUPS, ENOUGH * total / smaller)


def _p_value(rows_2G: np.ndarray, chance: np.random.Generator) -> float:
    """The share of divisions of all images whose counts differ at least as much as these, these included.

    Args:
        rows_2G: counts by group of the window and of the reference.
        chance: draws the divisions.
    """
    total_G, n = rows_2G.sum(0), int(rows_2G[0].sum())
    if len(total_G) < 2:
        return 1.0
    expected_G = total_G * (n / total_G.sum())
    # The reference's part of chi-square is proportional to the window's, so this orders divisions as the whole would.
    observed = float(((rows_2G[0] - expected_G) ** 2 / expected_G).sum())
    at_least = drawn = 0
    for draws in DRAWS:
        drawn_DG = chance.multivariate_hypergeometric(total_G, n, size=draws)
        at_least += int((((drawn_DG - expected_G) ** 2 / expected_G).sum(1) >= observed * (1 - 1e-9)).sum())
        drawn += draws
        if at_least:
            return (1 + at_least) / (drawn + 1)
    if min(expected_G.min(), (total_G - expected_G).min()) < ENOUGH * (1 - 1e-9):
        return 1 / (drawn + 1)
    whole = observed * total_G.sum() / (total_G.sum() - n)
    return min(1 / (drawn + 1), TAIL * float(chi2.sf(whole, len(total_G) - 1)))
