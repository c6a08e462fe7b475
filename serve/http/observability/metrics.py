"""What a server counts, as Prometheus reads it.

Every label is from a list that is known before the first request: a route's pattern, never an address; a reason's slug, never
a text. So what clients send cannot make the server remember more and more.
"""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeline.serve.classifier import Classifier
from edgeline.serve.inference.job import Answer
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
FOLDED = 64


class Metrics:
    """The counters of one server, in a registry of their own."""

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
            "edgeline_requests", "Answered requests.", ["route", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "edgeline_request_seconds",
            "From head to answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = self._histogram("queue", "An image's wait for a runner.")
        self.decode_seconds = self._histogram("decode", "Decoding and preprocessing one image.")
        self.infer_seconds = self._histogram("infer", "One run of the model.")
        self.batch_size = Histogram("edgeline_batch_size", "Images of one run.", buckets=(1, 2, 4, 8), registry=self.registry)
        self.rejected = Counter("edgeline_rejected", "Requests that were refused, by code.", ["reason"], registry=self.registry)
        self.compared = Counter(
            "edgeline_challenger_answers", "Images that both versions answered.", ["agreement"], registry=self.registry
        )
        self._predicted: list[tuple[float, float, float, int, float]] = []
        self._predict_seconds = self.request_seconds.labels("/predict")
        self._predict_requests = self.requests.labels("/predict", "POST", "200")

    def answered(self, answer: Answer) -> None:
        """Count one image's answer."""
        self.queue_seconds.observe(answer.queue_s)
        self.decode_seconds.observe(answer.decode_s)
        if answer.first:
            self.infer_seconds.observe(answer.infer_s)
            self.batch_size.observe(answer.batch)

    def predicted(self, answer: Answer, seconds: float) -> None:
        """Count the answer to a plain `POST /predict`, by and by: many at once cost less than each by itself."""
        self._predicted.append((answer.queue_s, answer.decode_s, answer.infer_s, answer.batch if answer.first else 0, seconds))
        if len(self._predicted) >= FOLDED:
            self.fold()

    def fold(self) -> None:
        """Count what was put off; on the event loop, before anybody reads."""
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

    def _histogram(self, what: str, says: str) -> Histogram:
        return Histogram(f"edgeline_{what}_seconds", says, buckets=SECONDS, registry=self.registry)


class State(Collector):
    """What is read from the server when somebody asks, and costs nothing until then."""

    def __init__(self, engine: Engine, models: ModelRepository, connections: Callable[[], int]) -> None:
        self.engine, self.models, self.connections = engine, models, connections

    def collect(self) -> Iterable[Metric]:
        """The present state as metrics."""
        totals = self.engine.stats
        yield _gauge("edgeline_ready", "Whether every artifact answers.", float(self.models.ready))
        yield _gauge("edgeline_queue_length", "Images that wait for a runner.", self.engine.waiting)
        yield _gauge("edgeline_in_flight", "Images that were taken in and have no answer yet.", self.engine.in_flight)
        yield _gauge("edgeline_connections", "Open connections.", self.connections())
        yield _gauge("edgeline_runners", "Threads that decode and run.", self.engine.plan.workers)
        yield _gauge("edgeline_runner_threads", "Threads inside the runtime for one run.", self.engine.plan.threads)
        yield _counter("edgeline_images", "Images that got an answer or an error.", totals.images)
        yield _counter("edgeline_runs", "Runs of a model.", totals.runs)
        yield _counter("edgeline_expired", "Images whose time was over.", totals.expired)
        yield _counter("edgeline_abandoned", "Images not looked at, because nobody waited any more.", totals.abandoned)
        yield _counter("edgeline_retried", "Images that were run alone, because their batch failed.", totals.retried)
        info = GaugeMetricFamily(
            "edgeline_model_info", "The artifacts that answer.", labels=["name", "version", "variant", "role"]
        )
        swaps = CounterMetricFamily("edgeline_swaps", "Exchanges of a version for another.", labels=["name"])
        refusals = CounterMetricFamily("edgeline_refusals", "Versions that did not prove themselves.", labels=["name"])
        for slot in self.models.slots:
            for role, classifier in (("current", slot.current), ("previous", slot.previous)):
                if classifier is not None:
                    manifest = classifier.manifest
                    info.add_metric([manifest.name, str(manifest.version), classifier.variant.name, role], 1)
            swaps.add_metric([slot.name], slot.swaps)
            refusals.add_metric([slot.name], slot.rejections)
        yield from (info, swaps, refusals)


class Distances(Collector):
    """How far what each model meets is from what it was judged on."""

    def __init__(self, drift: Callable[[Classifier], dict[str, dict[str, Any]]] | None, models: ModelRepository) -> None:
        self.drift, self.models = drift, models

    def collect(self) -> Iterable[Metric]:
        """The population stability index of each statistic."""
        index = GaugeMetricFamily(
            "edgeline_drift_psi", "Population stability index against the artifact's reference.", labels=["name", "statistic"]
        )
        for slot in self.models.slots:
            found = self.drift(slot.current) if self.drift is not None and slot.current is not None else {}
            for statistic, distances in found.items():
                index.add_metric([slot.name, statistic], distances["psi"])
        yield index


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(name, says, value=value)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(name, says, value=value)
