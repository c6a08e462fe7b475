"""Mean and variance of the training images' features, and the distance of other images' features from them.

`embedding.json` of an artifact:
    {"schema": "edgeline.embedding/1", "mean": [0.41, ...], "variance": [0.02, ...]}

Shapes: N images, C features.
"""

import json
from dataclasses import dataclass

import numpy as np

from edgeline.serve.artifact.cam_outputs import EMBEDDING, cam_output_shapes
from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.errors import ArtifactError

FILE_NAME = "embedding.json"
SCHEMA = "edgeline.embedding/1"
FLOOR = 0.01
"""This share of the mean variance is added to every feature's variance. Otherwise, for a feature that was constant in training,
rounding differences between processors would count as a large distance."""


@dataclass(frozen=True, slots=True)
class Features:
    """The distribution of the training images' embeddings."""

    mean_C: np.ndarray
    variance_C: np.ndarray

    def distance(self, embedding_NC: np.ndarray) -> np.ndarray:
        """The distance of embeddings from the training images', float64 (N,); about 1 for images of the same distribution.

        The root mean square over all features of the deviation in standard deviations: the Mahalanobis distance with a diagonal
        covariance, divided by the square root of C.
        """
        scale_C = self.variance_C + FLOOR * max(float(self.variance_C.mean()), float(np.finfo(np.float32).tiny))
        return np.asarray(np.sqrt((np.square(embedding_NC.astype(np.float64) - self.mean_C) / scale_C).mean(1)))


def read_features(artifact: Artifact) -> Features | None:
    """Read the distribution of an artifact's training images; None if it has none.

    Raises:
        ArtifactError: the file is invalid, or its schema unknown.
    """
    if not any(entry.path == FILE_NAME for entry in artifact.manifest.files):
        return None
    try:
        held = json.loads(artifact.read(FILE_NAME))
        if held["schema"] != SCHEMA:
            raise ValueError(f"its schema is {str(held['schema'])[:50]!r}, expected {SCHEMA!r}")
        mean_C, variance_C = (np.asarray(held[name], np.float64) for name in ("mean", "variance"))
        if (expected := cam_output_shapes(artifact.manifest).get(EMBEDDING)) != mean_C.shape:
            raise ValueError(f"it has {mean_C.shape} features, the manifest's embedding has {expected}")
        if mean_C.ndim != 1 or mean_C.shape != variance_C.shape or not np.isfinite([mean_C, variance_C]).all():
            raise ValueError("mean and variance must have the same length and finite numbers")
        if (variance_C < 0).any():
            raise ValueError("a variance is negative")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(
            f"{FILE_NAME} cannot be read: {error}; publish the artifact again", code="features_invalid"
        ) from error
    return Features(mean_C, variance_C)
