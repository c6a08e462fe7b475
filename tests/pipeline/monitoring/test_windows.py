"""The test of a window, on counts whose distribution is known."""

from typing import Any

import numpy as np
import pytest

from edgeline.pipeline.monitoring.windows import compare_window

EDGES = np.linspace(0.02, 0.98, 31).tolist()
"""Many bins, so that each reference has some that are empty: the groups must not depend on that."""


def snapshot(values: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """A snapshot with one statistic and two classes."""
    counts = np.bincount(np.searchsorted(EDGES, values, side="right"), minlength=len(EDGES) + 1).tolist()
    held = {"edges": EDGES, "counts": counts, "count": len(values), "mean": float(values.mean()), "variance": 0.1}
    return {
        "count": len(values),
        "statistics": {"top": held},
        "predicted": {"labels": ["ant", "bee"], "counts": np.bincount(predicted, minlength=2).tolist()},
    }


def draw(rng: np.random.Generator, count: int, *, shift: float = 0.0, bees: float = 0.5) -> dict[str, Any]:
    return snapshot(np.clip(rng.beta(2, 2, count) + shift, 0, 1), (rng.random(count) < bees).astype(int))


def test_a_quiet_window_is_an_alarm_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(0)
    alarms = [bool(compare_window(draw(rng, 40), draw(rng, 150), 0.1).drifted) for _ in range(300)]
    assert np.mean(alarms) < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 300)


@pytest.mark.parametrize(("change", "name"), [({"shift": 0.25}, "top"), ({"bees": 0.9}, "predicted")])
def test_a_change_is_found_and_named(change: dict[str, float], name: str) -> None:
    rng = np.random.default_rng(1)
    found = compare_window(draw(rng, 200, **change), draw(rng, 200), 0.05)
    assert (found.drifted[0], found.statistics[0].name) == (name, name)


def test_a_clear_change_has_a_p_value_that_no_number_of_draws_could_show() -> None:
    rng = np.random.default_rng(2)
    found = compare_window(draw(rng, 2000, shift=0.3), draw(rng, 500), 0.05)
    assert found.statistics[0].p_value < 1e-20


def test_few_images_can_be_compared_and_prove_little() -> None:
    rng = np.random.default_rng(3)
    found = compare_window(draw(rng, 3, shift=0.5), draw(rng, 60), 0.05)
    assert all(each.p_value > 1e-4 for each in found.statistics)


def test_the_same_window_has_the_same_p_values() -> None:
    window, reference = draw(np.random.default_rng(5), 30), draw(np.random.default_rng(6), 60)
    assert compare_window(window, reference, 0.05) == compare_window(window, reference, 0.05)


def test_a_statistic_without_values_is_left_out() -> None:
    rng = np.random.default_rng(4)
    empty = draw(rng, 20)
    empty["statistics"]["top"] |= {"counts": [0] * (len(EDGES) + 1), "count": 0}
    assert [each.name for each in compare_window(empty, draw(rng, 60), 0.05).statistics] == ["predicted"]
