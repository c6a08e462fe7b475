"""Put a server together from its options, and run it.

    edgeline serve ARTIFACT... [options]       ->      Options(...)      ->      run(options)

This is the one place that knows all the parts: models and their loading thread, engine and its runners, the application, the
socket, and what signals mean.
"""

import gc
import logging
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError
from edgeline.serve.http.app import Service, ServingLimits, create_app, metrics_app
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.fast_path import FastPath
from edgeline.serve.http.load_shedding import LoadShedding
from edgeline.serve.http.observability.logs import set_up_logs
from edgeline.serve.http.routes.published_files import store_of
from edgeline.serve.http.transport.connections import ConnectionLimits
from edgeline.serve.http.transport.server import Hooks, Server, is_exposed, listen, url_of
from edgeline.serve.inference.autotune import calibrate, remember_plan, remembered_plan, sample_image
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import ConcurrencyPlan, Engine
from edgeline.serve.preprocess import Limits
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.terminal import printable

LOG = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long a stopped server waits for threads that outlived the grace period."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What `edgeline serve` was told."""

    artifacts: list[Path]
    host: str = "127.0.0.1"
    port: int = 8000
    store: Path | None = None
    variant: str | None = None
    plan: ConcurrencyPlan | None = None
    """How the cores are used; by default what is found out at the first start."""
    limits: Limits = Limits()
    connections: ConnectionLimits = ConnectionLimits()
    deadline_s: float = 10.0
    queue: int = 64
    grace_s: float = 30
    challenger: Path | None = None
    challenger_share: float = 0.0
    tokens: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    cors: tuple[str, ...] = ()
    json_logs: bool = False
    access_log: bool = False
    drift: bool = False
    otel: bool = False
    cache: Path | None = None
    metrics_port: int = 8001
    """On loopback; only where the service itself can be reached from other machines, and so has no metrics."""


class Opening:
    """Opens classifiers with the threads of a plan that is found when the first of them is there."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.threads = options.plan.threads if options.plan else 1
        self.starting: Callable[[], bool] = lambda: True

    def open(self, path: Path) -> Classifier:
        """Open and prove an artifact."""
        return self.open_with(path, self.threads)

    def open_with(self, path: Path, threads: int, *, prove: bool = True) -> Classifier:
        """Open an artifact with so many threads."""
        options = self.options
        # Only while the server starts. Writing the optimized graph takes time in which no request is answered, and what comes
        # later is loaded just as the child that tried it did, which neither reads this folder nor could write to it. Of several
        # names that one start loads, all but the first were tried in a child too; what is kept of them was made by this
        # user's server from the very same file, and has proven itself.
        cache = options.cache if self.starting() else None
        return Classifier.open(path, variant=options.variant, threads=threads, limits=options.limits, prove=prove, cache=cache)

    def first(self, classifier: Classifier) -> Classifier:
        """Find the plan and start the runners; the classifier as that plan wants it."""
        plan = self.options.plan or self._find(classifier)
        if plan.threads != self.threads:
            self.threads = plan.threads
            classifier = self.open(classifier.artifact.folder)
        self.engine.start(plan)
        return classifier

    def _find(self, classifier: Classifier) -> ConcurrencyPlan:
        cores, cache = usable_cores(), self.options.cache
        if (plan := remembered_plan(classifier, cores, cache)) is not None:
            return plan
        begun = time.perf_counter()
        folder = classifier.artifact.folder

        def open_with(threads: int) -> Classifier:
            return classifier if threads == 1 else self.open_with(folder, threads, prove=False)

        plan = calibrate(open_with, sample_image(classifier), cores)
        found = f"{plan.runners} runners with {plan.threads} threads each, batches of up to {plan.batch}"
        LOG.info("found in %.1f s for %d cores: %s", time.perf_counter() - begun, cores, found)
        remember_plan(plan, classifier, cores, cache)
        return plan


def run(options: Options) -> None:
    """Serve until a signal says stop.

    Raises:
        ConfigError: an option cannot be had: the address, the tokens, the certificate.
    """
    set_up_logs(as_json=options.json_logs)
    tokens = None if options.tokens is None else Tokens(options.tokens)
    tls = _tls(options)
    engine = Engine(queue_limit=options.queue)
    opening = Opening(options, engine)
    models = ModelRepository(
        options.artifacts,
        opening.open,
        challenger=options.challenger,
        variant=options.variant,
        max_pixels=options.limits.max_pixels,
    )
    models.on_first = opening.first
    opening.starting = lambda: not models.ready
    terms = ServingLimits(limits=options.limits, deadline_s=options.deadline_s, challenger_share=options.challenger_share)
    service = Service(models, engine, terms)
    if options.drift:
        from edgeline.serve.inference.drift_observer import DriftObserver

        service.observed = DriftObserver()
        engine.observe = service.observed.take
        service.metrics.drift = service.observed.distances
    at_end: list[Callable[[], None]] = []
    store = options.store or store_of(options.artifacts[0])
    with listen(options.host, options.port) as listener:
        exposed, url = is_exposed(listener), url_of(listener, tls=tls is not None)
        if exposed and tokens is None:
            print(f"edgeline: {url} can be reached from other machines, and has no authentication", file=sys.stderr, flush=True)
        app = create_app(
            service, store=store, metrics=not exposed, tokens=tokens, cors=options.cors, access_log=options.access_log
        )

        metrics = listen("127.0.0.1", options.metrics_port, option="--metrics-port") if exposed else None

        served: ASGIApp = app
        if options.otel:
            from edgeline.serve.http.observability.tracing import traced

            served, provider = traced(app)
            at_end.append(provider.shutdown)
        elif tokens is None and not (options.cors or options.access_log):  # who may ask is for the application to say first
            served = LoadShedding(app, service)

        def started() -> None:
            print(f"edgeline serves {_titles(options.artifacts)} on {url}", flush=True)
            if metrics is not None:
                print(f"edgeline gives its metrics on {url_of(metrics)}/metrics", flush=True)
            # What is there now stays: looking through it for garbage, with many connections every few seconds, would make
            # requests wait for tens of milliseconds.
            gc.freeze()
            models.start()

        def stopping() -> None:
            service.stopping = True
            # Threads that read from a store which does not answer would keep the process; the last word is this one's.
            end = threading.Timer(options.grace_s + 4 * CLOSE_S, os._exit, [1])
            end.daemon = True
            end.start()

        signals = ((signal.SIGHUP, models.reload), (signal.SIGUSR1, models.roll_back))
        hooks = Hooks(started=started, stopping=stopping, signals=signals)
        server = Server(served, hooks=hooks, grace_s=options.grace_s, limits=options.connections, tls=tls)
        server.connections.refused = service.refused
        if not (options.otel or options.cors or options.access_log):
            server.connections.express = FastPath(service, tokens)
        service.connections = lambda: len(server.connections.open)
        if metrics is not None:
            server.beside(metrics, metrics_app(service))
        server.run(listener)
    for end in at_end:
        end()
    loaded, finished = models.close(CLOSE_S), engine.close(CLOSE_S)
    if not finished:
        print("edgeline: stopped with work that did not end in the grace period", file=sys.stderr, flush=True)
    if not (loaded and finished):
        # Python would wait for these threads for ever. No answer is lost by a version that was being loaded.
        os._exit(0 if finished else 1)


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.certificate is None and options.key is None:
        return None
    if options.certificate is None or options.key is None:
        raise ConfigError("TLS needs both --certificate and --key, one is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.certificate, options.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {options.certificate} and its key {options.key} cannot be used: {error.strerror or error}; "
            "expected PEM files that belong together"
        ) from error
    return context


def _titles(artifacts: list[Path]) -> str:
    return ", ".join(printable(str(path)) for path in artifacts)
