import random
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeline.pipeline.training.folds import NEVER, assign_folds


def samples(*labels: int, groups: Sequence[str] = "") -> list[Any]:
    names = groups or [""] * len(labels)
    return [
        SimpleNamespace(index=label, group=name, sha256=f"{number:064}")
        for number, (label, name) in enumerate(zip(labels, names, strict=True))
    ]


def test_each_class_is_spread_evenly_over_the_folds() -> None:
    labels = [0] * 23 + [1] * 10 + [2] * 11
    folds_M = assign_folds(samples(*labels))
    for label in range(3):
        counts = Counter(folds_M[np.array(labels) == label].tolist())
        assert set(counts) == set(range(5))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_group_is_in_one_fold() -> None:
    folds_M = assign_folds(samples(*[0] * 8, *[1] * 8, groups="aabbccddeeffgghh"))
    assert all(folds_M[i] == folds_M[i + 1] for i in range(0, 16, 2))
    assert len(set(folds_M[:8].tolist())) == len(set(folds_M[8:].tolist())) == 4


def test_every_class_has_images_outside_of_each_fold_whatever_the_groups() -> None:
    mixed = [(0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "e"), (2, "f"), (3, "g"), (3, "a"), (3, "g"), (4, "g"), (0, "h")]
    mixed += [(2, "i"), (3, "j"), (1, "h")]
    chance = random.Random(0)
    random_ones = [
        [(number if number < 4 else chance.randrange(4), chance.choice("abcdefgh")) for number in range(chance.randint(4, 24))]
        for _ in range(300)
    ]
    for images in (mixed, *random_ones):
        labels = np.array([label for label, _ in images])
        folds_M = assign_folds(samples(*labels, groups=[group for _, group in images]))
        for fold in set(folds_M[folds_M != NEVER].tolist()):
            assert set(labels[folds_M != fold].tolist()) == set(labels.tolist())


def test_the_folds_do_not_depend_on_the_order_of_the_images() -> None:
    images = samples(*[0, 1, 2] * 9)
    assert assign_folds(images).tolist() == assign_folds(images[::-1]).tolist()[::-1]


@pytest.mark.parametrize(("images", "folds"), [(2, 2), (3, 3), (4, 4), (9, 5)])
def test_there_are_no_more_folds_than_images_of_a_class(images: int, folds: int) -> None:
    assert assign_folds(samples(*[0] * images, *[1] * 20)).max() + 1 == folds


def test_a_class_with_one_group_is_never_held_out() -> None:
    folds_M = assign_folds(samples(*[0] * 6, *[1] * 3, groups="abcdefggg"))
    assert folds_M[6:].tolist() == [NEVER] * 3
    assert NEVER not in folds_M[:6]
