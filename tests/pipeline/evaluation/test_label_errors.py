"""Label errors: what is swapped on purpose is found, and a model that is often wrong does not accuse every label."""

import numpy as np
import pytest

from edgeline.pipeline.evaluation.label_errors import find_label_errors
from edgeline.pipeline.evaluation.metrics import softmax

CLASSES = 5


def drawn(images: int, separation: float, swapped: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated probabilities, labels of which a share is swapped, and which ones are."""
    rng = np.random.default_rng(seed)
    truth_M = rng.integers(0, CLASSES, images)
    # The posterior of classes with unit normal noise around corners: a classifier that makes no better use of them exists.
    points_MK = separation * np.eye(CLASSES)[truth_M] + rng.normal(0, 1, (images, CLASSES))
    swapped_M = rng.random(images) < swapped
    given_M = np.where(swapped_M, (truth_M + rng.integers(1, CLASSES, images)) % CLASSES, truth_M)
    return softmax(separation * points_MK), given_M, swapped_M


@pytest.mark.parametrize("seed", range(5))
def test_most_of_what_was_swapped_is_found_and_little_else(seed: int) -> None:
    probabilities_MK, given_M, swapped_M = drawn(1000, separation=4.0, swapped=0.05, seed=seed)
    found = find_label_errors(probabilities_MK, given_M)
    hits = swapped_M[found.indices].sum()
    assert hits >= 0.7 * swapped_M.sum()
    assert hits >= 0.7 * len(found.indices)


def test_the_suggestion_is_another_class_and_the_clearest_case_is_first() -> None:
    probabilities_MK, given_M, _ = drawn(500, separation=4.0, swapped=0.05)
    probabilities_MK[7], given_M[7] = np.eye(CLASSES)[2], 3
    found = find_label_errors(probabilities_MK, given_M)
    assert (found.indices[0], found.suggested[0]) == (7, 2)
    assert (found.suggested != given_M[found.indices]).all()


def test_a_weak_model_does_not_accuse_every_label_that_it_gets_wrong() -> None:
    probabilities_MK, given_M, _ = drawn(2000, separation=1.2, swapped=0.0)
    wrong = int((probabilities_MK.argmax(1) != given_M).sum())
    assert wrong > 700
    assert len(find_label_errors(probabilities_MK, given_M).indices) < wrong / 10


def test_clean_and_certain_labels_and_a_class_without_images_are_not_reported() -> None:
    targets_M = np.array([0, 1, 0, 1])
    assert len(find_label_errors(np.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]] * 2), targets_M).indices) == 0
