"""Differences between two preprocessings of the same image, and their likely cause. Shapes: H x W the model's input."""

import numpy as np

EXPLAINED = 0.25
"""A guess counts as the cause if it leaves less than this share of the difference."""


def mean_difference(one_HW3: np.ndarray, other_HW3: np.ndarray) -> float:
    """Mean absolute difference of two uint8 images of the same shape, in levels of 0 to 255."""
    return float(np.abs(one_HW3.astype(np.int16) - other_HW3).mean())


def likely_cause(expected_HW3: np.ndarray, observed_HW3: np.ndarray) -> str:
    """Name the cause if a simple guess explains most of the difference, otherwise what to inspect."""
    if np.ptp(expected_HW3) and expected_HW3.shape == observed_HW3.shape:
        turned = [np.rot90(side_HW3, k) for side_HW3 in (observed_HW3, observed_HW3[:, ::-1]) for k in range(4)][1:]
        guesses = {
            "red and blue are swapped": [observed_HW3[..., ::-1]],
            "the image is rotated or mirrored, as if its EXIF orientation were ignored": turned,
        }
        limit = EXPLAINED * mean_difference(expected_HW3, observed_HW3)
        for guess, tries in guesses.items():
            if any(t.shape == expected_HW3.shape and mean_difference(expected_HW3, t) < limit for t in tries):
                return guess
    return "check the image decoder, the crop and the resize filter"
