"""Streaming statistics of a model's inputs and predictions: fixed memory, a few microseconds per image, thread-safe.

    drift = drift_of(classifier)
    drift.observe(pixels_HW3, probabilities_K, Origin(width=4000, height=3000, size_bytes=2_500_000))
    drift.snapshot()                 # JSON types; `serve.drift.snapshot` merges, compares and reads them

The statistics are histograms with count, mean and variance: brightness and contrast of the model's pixels; width, height,
aspect ratio and encoded size of the image; the top probability, its margin over the second, and the entropy as a fraction of
the maximum. In addition, how often each class was predicted. If the artifact has the distribution of its training images'
features, also the distance of each image's features from it.

`observe` copies about a thousand of the model's pixel values, and the probabilities, into a buffer of `BATCH` images; the
statistics are computed for a full buffer at once.

Shapes: B images in the buffer, V pixel values of each, H x W the model's input, K classes, C features.
"""

import math
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeline.serve.artifact.cam_outputs import EMBEDDING
from edgeline.serve.artifact.training_features import Features
from edgeline.serve.drift.snapshot import EDGES, EMBEDDING_EDGES, SCHEMA
from edgeline.serve.image_files import open_image

if TYPE_CHECKING:
    from edgeline.serve.classifier import Classifier

BATCH = 64
VALUES = 1000
"""Approximate number of pixel values that are sampled, evenly spaced; all of them for a small input."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The image that pixels were made from. NaN stands for what is unknown."""

    width: float = math.nan
    """Of the stored image."""
    height: float = math.nan
    size_bytes: float = math.nan
    """Of the encoded image; NaN if it was not a file."""


class Drift:
    """The statistics of one model since this object was created."""

    def __init__(
        self, labels: tuple[str, ...], height: int, width: int, features: Features | None = None, **identity: Any
    ) -> None:
        """Create empty statistics.

        Args:
            labels: class names in index order.
            height: rows of the model's input.
            width: columns of the model's input.
            features: of the training images; adds the statistic `embedding`.
            identity: `model`, `version` and `manifest_sha256`, which are part of every snapshot.
        """
        self._identity = {name: identity[name] for name in ("model", "version", "manifest_sha256")}
        self._labels = labels
        self._since = _now()
        self._step = _step(height, 3 * width)
        self._levels_BV = np.empty((BATCH, len(range(0, height * width * 3, self._step))), np.uint8)
        self._probabilities_BK = np.empty((BATCH, len(labels)), np.float32)
        self._origins_B3 = np.empty((BATCH, 3))
        self._features = features
        self._embeddings_BC = np.empty((BATCH, 0 if features is None else len(features.mean_C)), np.float32)
        self._filled = 0
        edges = EDGES if features is None else {**EDGES, EMBEDDING: EMBEDDING_EDGES}
        self._statistics = {name: _Statistic(inner) for name, inner in edges.items()}
        self._predicted_K = np.zeros(len(labels), np.int64)
        self._lock = threading.Lock()

    def observe(
        self,
        pixels_HW3: np.ndarray,
        probabilities_K: np.ndarray,
        origin: Origin = Origin(),
        *,
        embedding_C: np.ndarray | None = None,
    ) -> None:
        """Record one image and its prediction.

        Args:
            pixels_HW3: uint8, the model's input.
            probabilities_K: the model's output, finite.
            origin: the image that the pixels were made from.
            embedding_C: its features; None if the variant has none.
        """
        with self._lock:
            at = self._filled
            self._levels_BV[at] = pixels_HW3.reshape(-1)[:: self._step]
            self._probabilities_BK[at] = probabilities_K
            self._origins_B3[at] = origin.width, origin.height, origin.size_bytes
            if self._features is not None:
                self._embeddings_BC[at] = math.nan if embedding_C is None else embedding_C
            self._filled = at + 1
            if self._filled == BATCH:
                self._fold()

    @property
    def count(self) -> int:
        """Number of observed images."""
        with self._lock:
            return int(self._predicted_K.sum()) + self._filled

    def snapshot(self) -> dict[str, Any]:
        """The current statistics in the format of `serve.drift.snapshot`; observing continues."""
        with self._lock:
            self._fold()
            return {
                "schema": SCHEMA,
                **self._identity,
                "since": self._since,
                "until": _now(),
                "count": int(self._predicted_K.sum()),
                "statistics": {name: statistic.to_dict() for name, statistic in self._statistics.items()},
                "predicted": {"labels": list(self._labels), "counts": self._predicted_K.tolist()},
            }

    def _fold(self) -> None:
        """Move the buffer into the statistics; the lock must be held."""
        count, self._filled = self._filled, 0
        if count == 0:
            return
        levels_BV = self._levels_BV[:count].astype(np.float32)
        mean_B = levels_BV.mean(1)
        levels_BV -= mean_B[:, None]
        probabilities_BK = self._probabilities_BK[:count]
        width_B, height_B, size_bytes_B = self._origins_B3[:count].T
        nats_B = -(probabilities_BK * np.log(np.maximum(probabilities_BK, np.finfo(np.float32).tiny))).sum(1)
        best_B, rows_B = probabilities_BK.argmax(1), np.arange(count)
        top_B = probabilities_BK[rows_B, best_B]
        probabilities_BK[rows_B, best_B] = -1  # overwrites the buffer, which is no longer needed
        observed = {
            "brightness": mean_B,
            "contrast": np.sqrt(np.einsum("bv,bv->b", levels_BV, levels_BV) / levels_BV.shape[1]),
            "width": width_B,
            "height": height_B,
            "aspect": width_B / height_B,
            "size_bytes": size_bytes_B,
            "top": top_B,
            "margin": top_B - probabilities_BK.max(1),
            "entropy": nats_B / math.log(len(self._labels)),
        }
        if self._features is not None:
            observed[EMBEDDING] = self._features.distance(self._embeddings_BC[:count])
        for name, values_B in observed.items():
            self._statistics[name].add(values_B[np.isfinite(values_B)].astype(np.float64))
        self._predicted_K += np.bincount(best_B, minlength=len(self._labels))


class _Statistic:
    """A histogram, with count, mean and variance."""

    def __init__(self, edges: list[float]) -> None:
        self._edges = edges
        self._counts = np.zeros(len(edges) + 1, np.int64)
        self._mean = self._squares = 0.0

    def add(self, values_B: np.ndarray) -> None:
        """Add a batch of values, by the formulae of Chan, Golub and LeVeque (1979), as in `serve.drift.snapshot.merge`."""
        if not values_B.size:
            return
        before, count = int(self._counts.sum()), values_B.size
        mean = float(values_B.mean())
        step = mean - self._mean
        self._squares += float(((values_B - mean) ** 2).sum()) + step**2 * before * count / (before + count)
        self._mean += step * count / (before + count)
        self._counts += np.bincount(np.searchsorted(self._edges, values_B, side="right"), minlength=len(self._counts))

    def to_dict(self) -> dict[str, Any]:
        count = int(self._counts.sum())
        variance = self._squares / max(1, count)
        return {
            "edges": list(self._edges),
            "counts": self._counts.tolist(),
            "count": count,
            "mean": self._mean,
            "variance": variance,
        }


def _step(rows: int, row_length: int) -> int:
    """Distance of two sampled values; coprime to the row length, so that every column and color is sampled."""
    step = max(1, rows * row_length // VALUES)
    while math.gcd(step, row_length) > 1:
        step -= 1
    return step


def drift_of(classifier: "Classifier") -> Drift:
    """Empty statistics for a classifier."""
    manifest, spec = classifier.manifest, classifier.manifest.preprocess
    identity = {"model": manifest.name, "version": manifest.version, "manifest_sha256": classifier.artifact.manifest_sha256}
    return Drift(manifest.labels, spec.height, spec.width, classifier.features, **identity)


def origin_of(image: bytes) -> Origin:
    """Read the origin from the header of an image that is known to be valid."""
    with open_image(image) as header:
        return Origin(header.width, header.height, len(image))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
