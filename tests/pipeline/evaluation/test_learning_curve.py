"""The learning curve: the closed form is ridge regression, more images help, and the gain of one class is not overstated."""

import numpy as np
import pytest

from edgeline.pipeline.evaluation.learning_curve import PENALTY, Table, fit_and_predict, learning_curve

LABELS = ["a", "b", "c"]


def drawn(each: int, features: int = 40, seed: int = 0, spread: float = 1.0) -> Table:
    """Images of three classes around fixed places."""
    rng = np.random.default_rng(seed)
    targets_N = np.repeat(np.arange(3), each)
    places_KD = np.random.default_rng(99).normal(0, spread, (3, features)) * 0.7
    features_ND = (places_KD[targets_N] + rng.normal(0, 1, (3 * each, features))).astype(np.float32)
    return Table(features_ND=features_ND, targets_N=targets_N, groups_N=np.arange(3 * each))


@pytest.mark.parametrize("each", [8, 60], ids=["fewer images than features", "more images than features"])
def test_the_closed_form_classifies_as_ridge_regression_does(each: int) -> None:
    from sklearn.linear_model import Ridge

    train, test = drawn(each), drawn(40, seed=1)
    centered_ND = train.features_ND - train.features_ND.mean(0)
    expected = Ridge(alpha=PENALTY * float((centered_ND**2).sum()) / len(centered_ND)).fit(
        train.features_ND, np.eye(3)[train.targets_N]
    )
    observed_T = fit_and_predict(train, test.features_ND)
    assert (observed_T == expected.predict(test.features_ND).argmax(1)).mean() > 0.99


def test_a_rare_class_has_the_weight_of_the_others() -> None:
    train, test = drawn(60), drawn(60, seed=1)
    rare = Table(
        features_ND=np.concatenate([train.features_ND[:6], train.features_ND[60:]]),
        targets_N=np.concatenate([train.targets_N[:6], train.targets_N[60:]]),
        groups_N=np.arange(126),
    )
    assert (fit_and_predict(rare, test.features_ND[:60]) == 0).mean() > 0.6


def test_more_images_are_better_and_the_interval_contains_the_accuracy() -> None:
    found = learning_curve(drawn(80), drawn(100, seed=1), LABELS, seed=0)
    assert found is not None
    assert [point.images for point in found.points] == [30, 60, 120, 240]
    accuracies = [point.accuracy for point in found.points]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] - accuracies[0] > 0.02
    assert all(point.low < point.accuracy < point.high for point in found.points)
    assert learning_curve(drawn(80), drawn(100, seed=1), LABELS, seed=0) == found


def test_what_more_of_a_class_brings_is_between_nothing_and_what_half_of_it_costs() -> None:
    found = learning_curve(drawn(80), drawn(100, seed=1), LABELS, seed=0)
    assert found is not None
    assert sorted(gain.label for gain in found.classes) == LABELS
    for gain in found.classes:
        assert gain.more == 50
        assert gain.low <= gain.gain <= gain.high
        assert abs(gain.gain) < 0.05


def test_images_of_a_group_are_in_a_subset_together() -> None:
    """Eight copies of each image: a subset of single images would contain copies of almost all of them."""
    once = drawn(8, spread=0.6)
    copies = Table(
        features_ND=once.features_ND.repeat(8, 0), targets_N=once.targets_N.repeat(8), groups_N=once.groups_N.repeat(8)
    )
    test = drawn(100, seed=1, spread=0.6)
    grouped = learning_curve(copies, test, LABELS, seed=0)
    single = learning_curve(
        Table(features_ND=copies.features_ND, targets_N=copies.targets_N, groups_N=np.arange(192)), test, LABELS, seed=0
    )
    assert grouped is not None
    assert single is not None
    assert grouped.points[0].accuracy < single.points[0].accuracy - 0.05


def test_a_class_of_too_few_images_has_no_curve() -> None:
    assert learning_curve(drawn(3), drawn(10, seed=1), LABELS, seed=0) is None
