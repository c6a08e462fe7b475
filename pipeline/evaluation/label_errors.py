"""Find images that are probably labeled wrongly.

The method is confident learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"). Heads
that have not seen an image estimate its class. An image counts as an example of a class if its probability of that class is at
least the mean probability of the images with that label. Counted by label and by class, these examples estimate how many labels
are wrong. At most that many images are reported: those whose label falls farthest below the most probable other class.
Confident learning takes the mistakes of a weak model for label errors too, so this class must be ten times as probable as the
label.

Shapes: M images, K classes.
"""

from dataclasses import dataclass

import numpy as np

MIN_ODDS = 10.0
"""With 5 % swapped labels on two sets of photos this costs 2 % of what is found. On clean labels, with features by which only a
quarter of the images are classified correctly, it leaves 20 of 1,081 images where confident learning alone reports 779."""


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """Images that are probably labeled wrongly."""

    indices: np.ndarray
    """Of the images, the most suspicious first."""
    suggested: np.ndarray
    """Index of the class that each of them probably is."""


def find_label_errors(probabilities_MK: np.ndarray, targets_M: np.ndarray) -> LabelErrors:
    """Find the images that are probably labeled wrongly.

    Args:
        probabilities_MK: of each image, by a model that has not learned from it.
        targets_M: index of each image's label.
    """
    images, classes = probabilities_MK.shape
    counts_K = np.bincount(targets_M, minlength=classes)
    own_M = probabilities_MK[np.arange(images), targets_M]
    thresholds_K = np.bincount(targets_M, weights=own_M, minlength=classes) / np.maximum(counts_K, 1)
    examples_MK = (probabilities_MK >= thresholds_K) & (counts_K > 0)
    confident_M = examples_MK.any(1)
    class_M = np.where(examples_MK, probabilities_MK, -1).argmax(1)
    joint_KK = np.zeros((classes, classes))
    np.add.at(joint_KK, (targets_M[confident_M], class_M[confident_M]), 1)
    joint_KK *= (counts_K / np.maximum(joint_KK.sum(1), 1))[:, None]
    wrong = round(float(joint_KK.sum() - np.trace(joint_KK)))

    others_MK = probabilities_MK.copy()
    others_MK[np.arange(images), targets_M] = -1
    margin_M = own_M - others_MK.max(1)
    indices = np.argsort(margin_M, kind="stable")[:wrong]
    indices = indices[others_MK[indices].max(1) >= MIN_ODDS * own_M[indices]]
    return LabelErrors(indices, others_MK[indices].argmax(1))
