"""Test a window of production images against an artifact's held-out images, with a stated rate of false alarms.

    found = compare_window(snapshot, reference, alpha=0.05)
    found.drifted                     # ["brightness", "entropy"]

For each statistic the question is whether the counts in its groups of bins could come from the same distribution as those of
the held-out images. The p-value is that of a permutation test with the chi-square statistic: given all images, every division
of them into a window and a reference is equally likely, so it holds for any number of images, however few, and for any
distribution. Where no drawn division differs as much and no group is small, the p-value is that of the chi-square
distribution, which has no lower limit. Holm's correction over the statistics keeps the probability of any false alarm in a
window at `alpha`.

A snapshot has counts and no images, so statistics are tested one by one, and dependent ones are corrected as if independent.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

from edgeline.serve.drift.snapshot import groups_of_bins, groups_of_classes

DRAWS = 4000
"""Divisions of the images that are drawn."""
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
            raw[name] = _p_value(seen["counts"], held["counts"], [group for group, _ in groups_of_bins(held["counts"])], chance)
    if reference["count"] and snapshot["count"]:
        held = reference["predicted"]["counts"]
        raw["predicted"] = _p_value(
            snapshot["predicted"]["counts"], held, [group for group, _ in groups_of_classes(held)], chance
        )
    found, largest = [], 0.0
    for rank, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[name]))
        seen, own = snapshot["statistics"].get(name, {}), reference["statistics"].get(name, {})
        count = seen.get("count", snapshot["count"])
        found.append(StatisticTest(name, count, largest, seen.get("mean"), own.get("mean")))
    return WindowResult(tuple(found), alpha)


def _p_value(seen: list[int], held: list[int], groups: list[list[int]], chance: np.random.Generator) -> float:
    """The share of divisions of all images whose counts differ at least as much as these, these included."""
    rows = np.array([[sum(counts[i] for i in group) for group in groups] for counts in (seen, held)])
    rows = rows[:, rows.sum(0) > 0]
    total_G, n = rows.sum(0), int(rows[0].sum())
    if rows.shape[1] < 2:
        return 1.0
    drawn_DG = chance.multivariate_hypergeometric(total_G, n, size=DRAWS)
    expected_G = total_G * (n / total_G.sum())
    # The reference's part of chi-square is proportional to the window's, so this orders divisions as the whole would.
    distance_D = ((drawn_DG - expected_G) ** 2 / expected_G).sum(1)
    observed = float(((rows[0] - expected_G) ** 2 / expected_G).sum())
    at_least = int((distance_D >= observed * (1 - 1e-9)).sum())
    if at_least or min(expected_G.min(), (total_G - expected_G).min()) < ENOUGH:
        return (1 + at_least) / (DRAWS + 1)
    whole = observed * total_G.sum() / (total_G.sum() - n)
    return min(1 / (DRAWS + 1), float(chi2.sf(whole, len(total_G) - 1)))
