"""Folds for cross-fitting: every image's logits come from a head that was not trained on it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from edgeline.pipeline.data.samples import Sample

FOLDS = 5
NEVER = -1
"""Fold of an image that is in every training set."""


def assign_folds(samples: Sequence[Sample], count: int = FOLDS) -> np.ndarray:
    """Divide images into folds, stratified by class, with groups undivided.

    Each group, the largest first, joins the fold with the fewest images of its classes; among equal ones a hash of the
    group's name decides the order, so that the result does not depend on the order of the images. scikit-learn has
    `StratifiedGroupKFold`, but takes seconds to import.

    Args:
        samples: near copies have the same group.
        count: number of folds; fewer if a class has fewer groups. A class of a single group has nothing to hold out: its
            images get the fold `NEVER`. No fold contains all images of a class.

    Returns:
        int64, shape (M,): 0 to the number of folds - 1, or `NEVER`.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        groups[sample.group or sample.sha256].append(position)
    groups_of_class = Counter(label for rows in groups.values() for label in {samples[row].index for row in rows})
    single = {label for label, number in groups_of_class.items() if number == 1}
    count = max(2, min([count, *(number for label, number in groups_of_class.items() if label not in single)]))
    order = sorted(groups, key=lambda name: (-len(groups[name]), hashlib.sha256(name.encode()).digest()))
    held: list[Counter[int]] = [Counter() for _ in range(count)]
    folds_M = np.full(len(samples), NEVER)
    for name in order:
        labels = [samples[row].index for row in groups[name]]
        if single & set(labels):
            continue
        fold = min(range(count), key=lambda i: (sum(held[i][label] for label in labels), held[i].total()))
        held[fold].update(labels)
        folds_M[groups[name]] = fold
    labels_M = np.array([sample.index for sample in samples])
    for fold in range(count):
        for label in groups_of_class:  # groups of several classes may have put all groups of one into the same fold
            if (folds_M[labels_M == label] == fold).all():
                smallest = next(name for name in reversed(order) if (labels_M[groups[name]] == label).any())
                folds_M[groups[smallest]] = NEVER
    return folds_M
