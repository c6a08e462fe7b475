"""What the routes of one server share: models, engine, limits, memory budget and metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import InputError, NotReadyError, OverloadedError
from edgeline.serve.http.observability.metrics import Metrics
from edgeline.serve.http.request_body import Budget
from edgeline.serve.inference.drift_observer import DriftObserver
from edgeline.serve.inference.job import Answer
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import Engine
from edgeline.serve.preprocess import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingLimits:
    """Limits of one request and of all requests together."""

    images: Limits = Limits()
    deadline_s: float = 10.0
    """Default deadline of a request, and the longest one that a request may set."""
    max_buffered_bytes: int = 256 * 2**20
    """Request bodies in memory, over all requests."""
    challenger_share: float = 0.0
    """Share of the requests for the first model that the challenger answers, 0 to 1."""


class Service:
    """Models and engine behind the routes, with what is counted about them."""

    def __init__(
        self,
        models: ModelRepository,
        engine: Engine,
        limits: ServingLimits,
        *,
        drift: DriftObserver | None = None,
        open_connections: Callable[[], int] = lambda: 0,
    ) -> None:
        """Build the service.

        Args:
            models: the served models.
            engine: runs them; reports its answers to `drift` itself.
            limits: of requests.
            drift: drift statistics; None if they are not collected.
            open_connections: returns the number of open connections, for the metrics.
        """
        self.models = models
        self.engine = engine
        self.limits = limits
        self.drift = drift
        self.budget = Budget(limits.max_buffered_bytes)
        self.metrics = Metrics(engine, models, open_connections, None if drift is None else drift.distances)
        self.stopping = False
        """Set when the server begins to shut down; `/readyz` then returns 503."""
        self._challenger_turns = 0.0

    def count_rejected(self, code: str) -> None:
        """Count an error response by its code."""
        self.metrics.rejected.labels(code).inc()

    def admit(self, within_s: float) -> None:
        """Reject a request before its body is read if it could not be answered in time.

        Raises:
            OverloadedError: as `Engine.answer`.
        """
        if self.engine.full(min(within_s, self.limits.deadline_s)):
            self.engine.stats.rejected += 1
            raise OverloadedError(retry_after_s=self.engine.wait_s())

    async def answer(
        self, classifier: Classifier, item: bytes | np.ndarray, within_s: float, *, explain: bool = False
    ) -> Answer:
        """Classify one image on the engine, and count it."""
        answer = await self.engine.answer(classifier, item, within_s, explain=explain)
        self.metrics.answered(answer)
        return answer

    def classifier(self, name: str | None = None) -> Classifier:
        """The classifier that serves a name, by default the first one.

        Raises:
            InputError: no model has that name.
            NotReadyError: it is not loaded.
        """
        found = self.models.current(name)
        if found is None:
            if name is not None and self.models.ready:
                names = ", ".join(self.models.names())
                raise InputError(f"no model of that name is served; available: {names}", code="model_unknown")
            raise self.not_ready()
        return found

    def not_ready(self) -> NotReadyError:
        """The error while a model is missing: loading, or the reason for which one could not be loaded."""
        failure = next((slot.failure for slot in self.models.slots if slot.failure is not None), None)
        if failure is None:
            return NotReadyError("the artifact is being checked and loaded", code="loading")
        return NotReadyError(f"the artifact is not served: {failure.reason}", code=failure.code)

    def next_challenger(self) -> Classifier | None:
        """The challenger, if the next request is one of its share."""
        slot = self.models.challenger
        if slot is None or slot.current is None:
            return None
        self._challenger_turns += self.limits.challenger_share
        if self._challenger_turns < 1:
            return None
        self._challenger_turns -= 1
        return slot.current
