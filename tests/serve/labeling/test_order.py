"""The order in which photos are labeled."""

import numpy as np

from edgeline.serve.labeling.order import BLOCK, CANDIDATES, label_order


def test_without_features_the_most_uncertain_photo_comes_first() -> None:
    assert label_order(np.array([0.2, 0.9, 0.5, 0.9])) == [1, 3, 2, 0]
    assert label_order(np.array([])) == []


def test_photos_of_one_scene_do_not_come_in_a_row() -> None:
    rng = np.random.default_rng(3)
    scenes_SC = rng.normal(size=(BLOCK, 6)) * 5
    scene_N = np.repeat(np.arange(BLOCK), CANDIDATES)
    embedding_NC = scenes_SC[scene_N] + rng.normal(size=(len(scene_N), 6)) / 10
    uncertainty_N = 0.5 + (BLOCK - scene_N) / 100  # by uncertainty alone, scene after scene
    order = label_order(uncertainty_N, embedding_NC)
    assert order[0] == 0
    assert sorted(scene_N[order[:BLOCK]]) == list(range(BLOCK))
    assert sorted(order) == list(range(len(scene_N)))


def test_a_photo_that_is_far_away_but_certain_waits() -> None:
    embedding_NC = np.ones((200, 2))
    embedding_NC[7] = 50
    uncertainty_N = np.linspace(1, 0.5, 200)
    uncertainty_N[7] = 0
    assert label_order(uncertainty_N, embedding_NC).index(7) > 100


def test_many_photos_are_all_ordered_once() -> None:
    rng = np.random.default_rng(0)
    order = label_order(rng.random(1_500), rng.normal(size=(1_500, 8)).astype(np.float16))
    assert sorted(order) == list(range(1_500))
