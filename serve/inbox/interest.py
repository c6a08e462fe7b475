"""How interesting a photo is for labeling: how unusual its prediction is among those for the artifact's held-out images.

    interest = InterestIn(classifier)
    interest.of(probabilities_K, embedding_C)       # Interest(share=0.97, uncertainty=0.41, distance=1.2)

A photo counts as unusual if the model is less sure of it than of most held-out images, or if its features lie farther from the
training images than those of most. Both are shares of the same images, so they can be compared; raw margins and distances
cannot.

Shapes: K classes, C features.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeline.serve.artifact.cam_outputs import EMBEDDING
from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.report import read_reference
from edgeline.serve.errors import EdgelineError


@dataclass(frozen=True, kw_only=True, slots=True)
class Interest:
    """How unusual one photo is."""

    share: float
    """Share of the held-out images that are less unusual, 0 to 1: by uncertainty or distance, whichever is larger."""
    uncertainty: float
    """1 minus the difference of the two highest probabilities, 0 to 1."""
    distance: float | None
    """As `training_features.Features.distance`, about 1 for images like those of training; None without features."""


class InterestIn:
    """Computes the interest of photos, for one classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self._features = classifier.features
        try:
            statistics = read_reference(classifier.artifact)["statistics"]
        except EdgelineError:
            statistics = {}
        self._margins: dict[str, Any] | None = statistics.get("margin")
        self._distances: dict[str, Any] | None = statistics.get(EMBEDDING)

    def of(self, probabilities_K: np.ndarray, embedding_C: np.ndarray | None = None) -> Interest:
        """Compute the interest of one photo.

        Args:
            probabilities_K: the model's output, finite.
            embedding_C: its features; None if the variant has none.
        """
        second, first = np.sort(probabilities_K)[-2:].tolist() if len(probabilities_K) > 1 else (0.0, 1.0)
        margin = first - second
        share = 1 - margin if self._margins is None else 1 - share_below(self._margins, margin)
        distance = None
        if embedding_C is not None and self._features is not None:
            found = float(self._features.distance(embedding_C[None])[0])
            distance = found if math.isfinite(found) else None
            if distance is not None and self._distances is not None:
                share = max(share, share_below(self._distances, distance))
        return Interest(share=share, uncertainty=1 - margin, distance=distance)


def share_below(histogram: dict[str, Any], value: float) -> float:
    """Share of a histogram's values that are below a value, 0 to 1; within a bin they count as evenly spread.

    Args:
        histogram: with `edges` and `counts`, as in `serve.drift.snapshot`; its first and last bins are open.
        value: the value.
    """
    edges, counts = histogram["edges"], histogram["counts"]
    total: int = sum(counts)
    if total == 0:
        return 0.0
    at = bisect_right(edges, value)
    below = float(sum(counts[:at]))
    if 0 < at < len(edges):
        below += counts[at] * (value - edges[at - 1]) / (edges[at] - edges[at - 1])
    return below / total
