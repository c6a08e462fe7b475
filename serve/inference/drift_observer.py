"""Drift statistics of the served models, kept while requests are answered.

Imported only by a server that keeps drift statistics. A worker records each answer before it is delivered. The statistics
belong to a loaded version and are dropped with it.
"""

import logging
import threading
from typing import Any
from weakref import WeakKeyDictionary

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Drift, Origin, drift_of, origin_of
from edgeline.serve.drift.report import read_reference
from edgeline.serve.drift.snapshot import distance
from edgeline.serve.errors import EdgelineError
from edgeline.serve.inference.job import Answer, Job

LOG = logging.getLogger(__name__)


class DriftObserver:
    """Statistics of each classifier. Thread-safe."""

    def __init__(self) -> None:
        self._by_classifier: WeakKeyDictionary[Classifier, tuple[Drift, dict[str, Any] | None]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Count the classifiers with statistics."""
        return len(self._by_classifier)

    def record(self, job: Job, answer: Answer) -> None:
        """Add one image and its answer to the statistics."""
        origin = origin_of(job.item) if isinstance(job.item, bytes) else Origin()
        drift = self._of(job.classifier)[0]
        drift.observe(answer.pixels_HW3, answer.probabilities_K, origin, embedding_C=answer.embedding_C)

    def snapshot(self, classifier: Classifier) -> dict[str, Any]:
        """Return the statistics of a classifier, in the form that `serve.drift.snapshot` reads."""
        return self._of(classifier)[0].snapshot()

    def distances(self, classifier: Classifier) -> dict[str, dict[str, Any]]:
        """Return each statistic's distances from the artifact's reference; empty without a reference or without images."""
        drift, reference = self._of(classifier)
        if reference is None or drift.count == 0:
            return {}
        try:
            return distance(drift.snapshot(), reference)
        except EdgelineError as error:  # a reference with other bins must not take the other metrics down
            LOG.warning("drift of %s cannot be computed: %s", classifier.manifest.name, error)
            return {}

    def _of(self, classifier: Classifier) -> tuple[Drift, dict[str, Any] | None]:
        with self._lock:
            found = self._by_classifier.get(classifier)
        if found is None:
            new = drift_of(classifier), _reference(classifier)  # reads files, so not while it holds the lock
            with self._lock:
                found = self._by_classifier.setdefault(classifier, new)
        return found


def _reference(classifier: Classifier) -> dict[str, Any] | None:
    try:
        return read_reference(classifier.artifact)
    except EdgelineError:
        return None
