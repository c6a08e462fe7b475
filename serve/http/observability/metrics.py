"""The server's metrics, for Prometheus.

Every label value is known before the first request: a route's pattern, not its URL; an error's code, not its message. So the
memory for metrics does not grow with what clients send.
"""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeline.serve.classifier import Classifier
from edgeline.serve.inbox.keeper import OUTCOMES, Keeper
from edgeline.serve.inference.job import Answer
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import BATCHES, Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
MAX_UNCOUNTED = 64
"""Plain answers that are counted together."""


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(
        self,
        engine: Engine,
        models: ModelRepository,
        connections: Callable[[], int],
        drift: Callable[[Classifier], dict[str, dict[str, Any]]] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(State(engine, models, connections))
        self.registry.register(Distances(drift, models))
        self.requests = Counter(
            "edgeline_requests", "Requests, by route, method and status.", ["route", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "edgeline_request_seconds",
            "Seconds from the head of a request to its reply.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = self._histogram("queue", "Seconds an image was queued.")
        self.decode_seconds = self._histogram("decode", "Seconds to decode and preprocess one image.")
        self.infer_seconds = self._histogram("infer", "Seconds of one run of the model.")
        self.batch_size = Histogram(
            "edgeline_batch_size", "Images per run of the model.", buckets=BATCHES, registry=self.registry
        )
        self.rejected = Counter("edgeline_rejected", "Rejected requests, by error code.", ["reason"], registry=self.registry)
        self.compared = Counter(
            "edgeline_challenger_answers",
            "Challenger answers, by agreement with the champion.",
            ["agreement"],
            registry=self.registry,
        )
        self._predicted: list[tuple[float, float, float, int, float]] = []
        self._predict_seconds = self.request_seconds.labels("/predict")
        self._predict_requests = self.requests.labels("/predict", "POST", "200")

    def answered(self, answer: Answer) -> None:
        """Count the answer to one image."""
        self.queue_seconds.observe(answer.queue_s)
        self.decode_seconds.observe(answer.decode_s)
        if answer.first:
            self.infer_seconds.observe(answer.infer_s)
            self.batch_size.observe(answer.batch)

    def predicted(self, answer: Answer, seconds: float) -> None:
        """Count the answer to a plain `POST /predict`; batched, which costs less than one at a time."""
        self._predicted.append((answer.queue_s, answer.decode_s, answer.infer_s, answer.batch if answer.first else 0, seconds))
        if len(self._predicted) >= MAX_UNCOUNTED:
            self.flush()

    def flush(self) -> None:
        """Count the batched answers; call it on the event loop before the metrics are read."""
        predicted, self._predicted = self._predicted, []
        for queue_s, decode_s, infer_s, batch, seconds in predicted:
            self.queue_seconds.observe(queue_s)
            self.decode_seconds.observe(decode_s)
            if batch:
                self.infer_seconds.observe(infer_s)
                self.batch_size.observe(batch)
            self._predict_seconds.observe(seconds)
        self._predict_requests.inc(len(predicted))

    def ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def _histogram(self, stage: str, description: str) -> Histogram:
        return Histogram(f"edgeline_{stage}_seconds", description, buckets=SECONDS, registry=self.registry)


class State(Collector):
    """Metrics that are read from the server's state on each scrape, and cost nothing in between."""

    def __init__(self, engine: Engine, models: ModelRepository, connections: Callable[[], int]) -> None:
        self.engine, self.models, self.connections = engine, models, connections

    def collect(self) -> Iterable[Metric]:
        """Return the current state as metrics."""
        stats = self.engine.stats
        yield _gauge("edgeline_ready", "1 if every artifact is served, else 0.", float(self.models.ready))
        yield _gauge("edgeline_queue_length", "Images in the queue.", self.engine.waiting)
        yield _gauge("edgeline_in_flight", "Images that were admitted and not yet answered.", self.engine.in_flight)
        yield _gauge("edgeline_connections", "Open connections.", self.connections())
        yield _gauge("edgeline_runners", "Worker threads, which decode images and run the model.", self.engine.plan.workers)
        yield _gauge("edgeline_runner_threads", "Threads of the runtime in one run of the model.", self.engine.plan.threads)
        yield _counter("edgeline_images", "Images that were answered or failed.", stats.images)
        yield _counter("edgeline_runs", "Runs of a model.", stats.runs)
        yield _counter("edgeline_expired", "Images whose deadline passed.", stats.expired)
        yield _counter("edgeline_abandoned", "Images that were cancelled before they were processed.", stats.abandoned)
        yield _counter("edgeline_retried", "Images that were run again alone, because their batch failed.", stats.retried)
        info = GaugeMetricFamily("edgeline_model_info", "The loaded versions.", labels=["name", "version", "variant", "role"])
        reloads = CounterMetricFamily("edgeline_reloads", "Hot reloads and rollbacks.", labels=["name"])
        rejections = CounterMetricFamily("edgeline_rejected_versions", "Versions that were rejected.", labels=["name"])
        for slot in self.models.slots:
            for role, classifier in (("current", slot.current), ("previous", slot.previous)):
                if classifier is not None:
                    manifest = classifier.manifest
                    info.add_metric([manifest.name, str(manifest.version), classifier.variant.name, role], 1)
            reloads.add_metric([slot.name], slot.reloads)
            rejections.add_metric([slot.name], slot.rejections)
        yield from (info, reloads, rejections)


class Distances(Collector):
    """Drift of each model's inputs and outputs from its reference."""

    def __init__(self, drift: Callable[[Classifier], dict[str, dict[str, Any]]] | None, models: ModelRepository) -> None:
        self.drift, self.models = drift, models

    def collect(self) -> Iterable[Metric]:
        """Return the population stability index of each statistic."""
        index = GaugeMetricFamily(
            "edgeline_drift_psi", "Population stability index against the artifact's reference.", labels=["name", "statistic"]
        )
        for slot in self.models.slots:
            found = self.drift(slot.current) if self.drift is not None and slot.current is not None else {}
            for statistic, distances in found.items():
                index.add_metric([slot.name, statistic], distances["psi"])
        yield index


class InboxState(Collector):
    """Metrics of the inbox, which keeps unusual photos to be labeled."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    def collect(self) -> Iterable[Metric]:
        """Return the current state as metrics."""
        offered = CounterMetricFamily("edgeline_inbox_offered", "Unusual photos, by what became of them.", labels=["outcome"])
        for outcome in OUTCOMES:
            offered.add_metric([outcome], self.keeper.outcomes[outcome])
        yield offered
        yield _gauge("edgeline_inbox_waiting", "Photos in the inbox without a label.", self.keeper.inbox.waiting)
        yield _gauge("edgeline_inbox_bytes", "Bytes of these photos and their notes.", self.keeper.inbox.size_bytes)
        yield _gauge("edgeline_inbox_failing", "1 if the last photo was not written, else 0.", self.keeper.problem is not None)


def _gauge(name: str, description: str, value: float) -> Metric:
    return GaugeMetricFamily(name, description, value=value)


def _counter(name: str, description: str, value: float) -> Metric:
    return CounterMetricFamily(name, description, value=value)
