"""What the server's models have met since they took over: drift statistics, kept beside the answers.

Only a server that is told to keep them imports this. A runner takes note of each answer before it is given; the statistics of
the versions that are loaded are kept, those of older ones go with them.
"""

import logging
import threading
from typing import Any
from weakref import WeakKeyDictionary

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Drift, drift_of, origin_of
from edgeline.serve.drift.report import read_reference
from edgeline.serve.drift.snapshot import distance
from edgeline.serve.errors import EdgelineError
from edgeline.serve.inference.scheduler import Answer, Job

LOG = logging.getLogger(__name__)


class DriftObserver:
    """Statistics by classifier. `take` is called by the runners, the rest from anywhere."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Classifier, tuple[Drift, dict[str, Any] | None]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def take(self, job: Job, answer: Answer) -> None:
        """Take note of one image and its answer."""
        origin = origin_of(job.item) if isinstance(job.item, bytes) else {}
        drift = self._of(job.classifier)[0]
        drift.observe(answer.pixels_HW3, answer.probabilities_K, embedding_C=answer.embedding_C, **origin)

    def snapshot(self, classifier: Classifier) -> dict[str, Any]:
        """The statistics of a classifier, as `serve.drift.snapshot` reads them."""
        return self._of(classifier)[0].snapshot()

    def distances(self, classifier: Classifier) -> dict[str, dict[str, Any]]:
        """How far each statistic is from the artifact's reference; empty where it carries none, or nothing was met yet."""
        drift, reference = self._of(classifier)
        if reference is None or drift.count == 0:
            return {}
        try:
            return distance(drift.snapshot(), reference)
        except EdgelineError as error:  # a reference with other bins is no reference; the metrics are still to be had
            LOG.warning("the drift of %s is not known: %s", classifier.manifest.name, error)
            return {}

    def _of(self, classifier: Classifier) -> tuple[Drift, dict[str, Any] | None]:
        with self._lock:
            found = self._kept.get(classifier)
        if found is None:
            made = drift_of(classifier), _reference(classifier)  # reads files, so not while the other runners wait
            with self._lock:
                found = self._kept.setdefault(classifier, made)
        return found


def _reference(classifier: Classifier) -> dict[str, Any] | None:
    try:
        return read_reference(classifier.artifact)
    except EdgelineError:
        return None
