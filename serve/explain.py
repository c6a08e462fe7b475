"""Why a classifier says what it says: each class's evidence at every place of the picture, and where that place is.

    [explanation] = classifier.explain([photo_bytes], top_k=1)
    explanation.evidence_Khw[0]       # of the likeliest class; its mean is its logit
    explanation.region                # what of the upright picture it is about

An artifact carries this where it was exported with `export.explain`: its graph has the outputs `evidence` and `embedding` then.
The method is class activation mapping (Zhou et al. 2016, "Learning Deep Features for Discriminative Localization"), which for
such networks is exact: the evidence adds up to the logit.

Shapes: N images, K classes, h x w places, C features.
"""

import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.errors import ArtifactError
from edgeline.serve.preprocess import FORMATS, LYING, PreprocessSpec, crop_box, orientation_of

EVIDENCE = "evidence"
"""float32 (N, K, h, w), in units of logits."""
EMBEDDING = "embedding"
"""float32 (N, C): the averaged features that the classes are told from."""
METHOD = "cam"
FILE_NAME = "embedding.json"
"""Of the mean and variance of each feature over the training images."""
SCHEMA = "edgeline.embedding/1"
FLOOR = 0.01
"""Share of the mean variance that is added to every feature's: of one that never moved in training, the rounding of another
processor must not look like news."""

Region = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Features:
    """What the embeddings of the training images are like."""

    mean_C: np.ndarray
    variance_C: np.ndarray

    def distance(self, embedding_NC: np.ndarray) -> np.ndarray:
        """How far embeddings are from the training images', float64 (N,); about 1 for one of their kind.

        The root of the mean square of all features, each in its own standard deviations: the Mahalanobis distance with a
        diagonal covariance, over the square root of C.
        """
        scale_C = self.variance_C + FLOOR * max(float(self.variance_C.mean()), float(np.finfo(np.float32).tiny))
        return np.asarray(np.sqrt((np.square(embedding_NC.astype(np.float64) - self.mean_C) / scale_C).mean(1)))


def read_features(artifact: Artifact) -> Features | None:
    """What an artifact says of its training images' embeddings; None where it carries nothing of them.

    Raises:
        ArtifactError: the file is none that this edgeline reads.
    """
    if not any(entry.path == FILE_NAME for entry in artifact.manifest.files):
        return None
    try:
        held = json.loads(artifact.read(FILE_NAME))
        if held["schema"] != SCHEMA:
            raise ValueError(f"its schema is {str(held['schema'])[:50]!r}, expected {SCHEMA!r}")
        mean_C, variance_C = (np.asarray(held[name], np.float64) for name in ("mean", "variance"))
        if (promised := more_outputs(artifact.manifest).get(EMBEDDING)) != mean_C.shape:
            raise ValueError(f"it has {mean_C.shape} features, the manifest's embedding has {promised}")
        if mean_C.ndim != 1 or mean_C.shape != variance_C.shape or not np.isfinite([mean_C, variance_C]).all():
            raise ValueError("mean and variance must be as many finite numbers each")
        if (variance_C < 0).any():
            raise ValueError("a variance is negative")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(
            f"{FILE_NAME} cannot be read: {error}; publish the artifact again", code="features_invalid"
        ) from error
    return Features(mean_C, variance_C)


def region_of(image: bytes | Image.Image, spec: PreprocessSpec) -> Region:
    """What of an image the model saw: left, top, right, bottom, as shares of the upright picture.

    Args:
        image: a file's bytes, of which it is known that they can be decoded, or an upright picture.
        spec: the model's preprocessing.
    """
    if isinstance(image, bytes):
        with Image.open(io.BytesIO(image), formats=FORMATS) as header:
            width, height = header.size[::-1] if orientation_of(header) in LYING else header.size
    else:
        width, height = image.size
    left, top, right, bottom = crop_box(width, height, spec)
    return left / width, top / height, right / width, bottom / height


def more_outputs(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The shapes behind the batch that a manifest promises of `evidence`, (K, h, w), and `embedding`, (C,); {} without them.

    Raises:
        ArtifactError: they are no such shapes, or it has one without the other.
    """
    found = {each["name"]: each["shape"] for each in manifest.outputs if each["name"] in (EVIDENCE, EMBEDDING)}
    if not found:
        return {}
    shapes = {name: tuple(shape[1:]) if isinstance(shape, list) else () for name, shape in found.items()}
    places, features = shapes.get(EVIDENCE, ()), shapes.get(EMBEDDING, ())
    whole = all(type(size) is int and size > 0 for size in (*places, *features))
    if not whole or len(places) != 3 or places[0] != len(manifest.labels) or len(features) != 1:
        raise ArtifactError(
            f"the manifest's outputs {EVIDENCE} and {EMBEDDING} have the shapes {str(found)[:200]}, expected "
            f"[batch, {len(manifest.labels)}, h, w] and [batch, features]; publish the artifact again",
            code="spec_mismatch",
        )
    return shapes
