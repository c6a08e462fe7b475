"""The paired comparison of two models: which images count, what chance explains, and how groups widen the interval."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeline.pipeline.evaluation.answers import Answer, Answers, find_evaluated_run
from edgeline.pipeline.evaluation.comparison import bootstrap_interval, compare, mcnemar
from edgeline.serve.errors import ConfigError, DataError


def answers(predicted: str, truth: str, name: str = "model", learned: Sequence[str] = (), first: int = 0) -> Answers:
    """The answers to images 0, 1, ..., one letter each, or to images from `first` on."""
    test = {
        f"{number}": Answer(f"{number}.jpg", label, answer, f"group {number}")
        for number, (answer, label) in enumerate(zip(predicted, truth, strict=True), first)
    }
    return Answers(name=name, test=test, learned=frozenset(learned))


def test_what_each_gains_and_loses_is_counted_image_by_image() -> None:
    found = compare(answers("aabbab", "aaabbb"), answers("aaaabb", "aaabbb"))
    assert (found.overall.images, found.overall.lost, found.overall.gained) == (6, 1, 2)
    assert (found.overall.first, found.overall.second) == (4 / 6, 5 / 6)
    assert found.overall.difference == pytest.approx(1 / 6)
    assert [(each.label, each.images, each.lost, each.gained) for each in found.classes] == [("a", 3, 0, 1), ("b", 3, 1, 1)]
    assert [(each.image, each.first, each.second) for each in found.changes] == [
        ("2.jpg", "b", "a"),
        ("3.jpg", "b", "a"),
        ("4.jpg", "a", "b"),
    ]


def test_images_that_one_has_learned_from_or_does_not_test_or_labels_differently_are_left_out() -> None:
    first = answers("aabb", "aabb", learned=["0"])
    second = answers("abbbb", "abbbb", first=0)
    found = compare(first, second)
    assert (found.overall.images, found.only_one_tests, found.learned, found.relabeled) == (2, 1, 1, 1)


def test_runs_without_a_common_image_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="old and new have 1 test images in common, and none .*1 were learned from"):
        compare(answers("ab", "ab", "old", learned=["1"]), answers("ab", "ab", "new", first=1))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (2, 10), (7, 7), (30, 12)])
def test_the_p_value_is_the_share_of_coin_tosses_at_least_as_uneven(lost: int, gained: int) -> None:
    tosses = lost + gained
    uneven = sum(math.comb(tosses, heads) for heads in range(tosses + 1) if abs(2 * heads - tosses) >= abs(lost - gained))
    assert mcnemar(lost, gained) == pytest.approx(uneven / 2**tosses)


def test_the_interval_is_that_of_the_normal_approximation_for_many_images() -> None:
    change_N = np.repeat([-1, 0, 1], [200, 3400, 400])
    low, high = bootstrap_interval(change_N, np.arange(4000), seed=0)
    half = 1.96 * change_N.std() / math.sqrt(4000)
    assert (low, high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.001)
    assert bootstrap_interval(change_N, np.arange(4000), seed=0) == (low, high)


def test_images_of_one_group_count_as_one_observation() -> None:
    """A hundred crops of 20 slides tell as much as 20 images."""
    change_N = np.repeat([1, 0, -1, 0], [25, 25, 10, 40])
    low, high = bootstrap_interval(change_N, np.arange(100), seed=0)
    grouped_low, grouped_high = bootstrap_interval(change_N, np.arange(100) // 5, seed=0)
    assert grouped_high - grouped_low > 2 * (high - low)


def test_without_a_single_change_the_interval_still_has_a_width() -> None:
    overall = compare(answers("ab" * 10, "ab" * 10), answers("ab" * 10, "ab" * 10)).overall
    assert (overall.difference, overall.p_value) == (0, 1)
    assert overall.low < 0 < overall.high


def test_a_folder_that_is_neither_a_run_nor_an_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is neither a run folder nor a published artifact"):
        find_evaluated_run(tmp_path, tmp_path)
