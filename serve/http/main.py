"""Build a server from its configuration, and run it.

    edgeline serve ARTIFACT... [options]       ->      ServerConfig(...)      ->      run(config)

`build` constructs all parts in order, each from the ones before it.
"""

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from edgeline.serve.http.app import AppOptions, create_app, metrics_app
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.config import ServerConfig, tls_context
from edgeline.serve.http.fast_path import FastPath
from edgeline.serve.http.load_shedding import LoadShedding
from edgeline.serve.http.model_loader import ModelLoader
from edgeline.serve.http.observability.logs import set_up_logs
from edgeline.serve.http.observability.metrics import InboxState
from edgeline.serve.http.routes.published_files import store_of
from edgeline.serve.http.service import Service, ServingLimits
from edgeline.serve.http.transport.connections import Connections, Handlers, affordable
from edgeline.serve.http.transport.server import LAME_DUCK_S, Hooks, Server, is_exposed, listen, url_of
from edgeline.serve.inbox.keeper import Keeper
from edgeline.serve.inference.drift_observer import DriftObserver
from edgeline.serve.inference.job import Answer, Job
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import Engine
from edgeline.serve.terminal import printable

CLOSE_S = 5.0
"""How long a stopped server waits for threads that are still running after the grace period."""
UNFINISHED = "stopped with work that did not end in the grace period"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sockets:
    """The listening sockets of a server, as far as its parts need them."""

    url: str
    """Of the public one."""
    metrics: socket.socket | None
    """On the loopback interface, if other machines can reach the public one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A server that is complete and not yet started."""

    engine: Engine
    models: ModelRepository
    server: Server
    keeper: Keeper | None
    """Keeps photos for labeling."""
    metrics: ASGIApp
    """For the metrics socket."""
    shut_down_tracing: Callable[[], None]


def run(config: ServerConfig) -> None:
    """Serve until a signal to stop.

    Raises:
        ConfigError: the address, the tokens or the certificate cannot be used.
    """
    set_up_logs(as_json=config.json_logs)
    tls, tokens = tls_context(config), None if config.tokens is None else Tokens(config.tokens)
    with listen(config.host, config.port) as listener:
        exposed, url = is_exposed(listener), url_of(listener, tls=tls is not None)
        if exposed and tokens is None:
            _warn(f"{url} can be reached from other machines, and has no authentication")
        metrics = listen("127.0.0.1", config.metrics_port, option="--metrics-port") if exposed else None
        parts = build(config, Sockets(url=url, metrics=metrics), tokens)
        parts.server.run(listener, tls=tls, also=[] if metrics is None else [(metrics, parts.metrics)])
    parts.shut_down_tracing()
    loaded, finished = parts.models.close(CLOSE_S), parts.engine.close(CLOSE_S)
    if parts.keeper is not None and not parts.keeper.close(CLOSE_S):  # its thread is a daemon
        _warn(f"photos for {parts.keeper.inbox.folder} were not written: the disk did not respond")
    if not finished:
        _warn(UNFINISHED)
    if not (loaded and finished):
        # Python would wait for these threads forever. Interrupting a version that is being loaded loses no answer.
        os._exit(0 if finished else 1)


def build(config: ServerConfig, sockets: Sockets, tokens: Tokens | None) -> Parts:
    """Construct a server for open sockets, from the engine up to the event loop; nothing is started but the inbox's thread.

    Raises:
        ConfigError: the inbox cannot be used.
    """
    store = config.store or store_of(config.artifacts[0])
    drift = DriftObserver() if config.drift else None
    keeper = None if config.inbox is None else Keeper.open(config.inbox, store)
    engine = Engine(queue_limit=config.queue, on_answer=_recorder(drift, keeper))
    models = ModelRepository(
        config.artifacts, ModelLoader(config, engine), channel=config.channel, challenger=config.challenger
    )
    connections = Connections(config.connections, affordable(config.connections))
    limits = ServingLimits(images=config.limits, deadline_s=config.deadline_s, challenger_share=config.challenger_share)
    service = Service(models, engine, limits, drift=drift, open_connections=lambda: len(connections.open))
    if keeper is not None:
        service.metrics.registry.register(InboxState(keeper))
    options = AppOptions(
        store=store,
        metrics=sockets.metrics is None,
        tokens=tokens,
        cors=config.cors,
        access_log=config.access_log,
        keeps_photos=keeper is not None,
    )
    handlers, shut_down_tracing = _handlers(config, service, options)
    hooks = _hooks(config, sockets, service)
    return Parts(
        engine=engine,
        models=models,
        server=Server(handlers, connections, hooks=hooks, grace_s=config.grace_s),
        keeper=keeper,
        metrics=metrics_app(service),
        shut_down_tracing=shut_down_tracing,
    )


def _recorder(drift: DriftObserver | None, keeper: Keeper | None) -> Callable[[Job, Answer], None] | None:
    """What the engine calls with every answer; None if nothing is recorded."""
    if drift is None and keeper is None:
        return None

    def record(job: Job, answer: Answer) -> None:
        if drift is not None:
            drift.record(job, answer)
        if keeper is not None and isinstance(job.item, bytes):
            keeper.offer(job.classifier, job.item, answer.probabilities_K, answer.embedding_C)

    return record


def _handlers(config: ServerConfig, service: Service, options: AppOptions) -> tuple[Handlers, Callable[[], None]]:
    """The application, behind load shedding and the fast path unless every request is traced, logged or checked for CORS."""
    app: ASGIApp = create_app(service, options)
    shut_down_tracing: Callable[[], None] = _do_nothing
    if config.otel:
        from edgeline.serve.http.observability.tracing import traced  # needs the extra `otel`

        app, provider = traced(app)
        shut_down_tracing = provider.shutdown
    if config.otel or config.cors or config.access_log:
        return Handlers(app, on_rejected=service.count_rejected), shut_down_tracing
    if options.tokens is None:  # with tokens, the application must authenticate first
        app = LoadShedding(app, service)
    fast_path = FastPath(service, options.tokens)
    return Handlers(app, fast_path=fast_path, on_rejected=service.count_rejected), shut_down_tracing


def _hooks(config: ServerConfig, sockets: Sockets, service: Service) -> Hooks:
    def started() -> None:
        print(f"edgeline serves {_titles(config.artifacts)} on {sockets.url}", flush=True)
        if sockets.metrics is not None:
            print(f"edgeline: metrics on {url_of(sockets.metrics)}/metrics", flush=True)
        if config.inbox is not None:
            print(f"edgeline: unusual photos are kept in {printable(str(config.inbox.folder))}", flush=True)
        # Everything that exists now is permanent. Scanning it for garbage, every few seconds with many connections, would
        # delay requests by tens of milliseconds.
        gc.freeze()
        service.models.start()

    def stopping() -> None:
        service.stopping = True
        # Threads that read from a store which does not respond would keep the process alive.
        end = threading.Timer(config.grace_s + 2 * LAME_DUCK_S + 4 * CLOSE_S, _give_up)
        end.daemon = True
        end.start()

    signals = ((signal.SIGHUP, service.models.reload), (signal.SIGUSR1, service.models.roll_back))
    return Hooks(started=started, stopping=stopping, signals=signals)


def _give_up() -> None:
    _warn(UNFINISHED)
    os._exit(1)


def _do_nothing() -> None:
    return


def _warn(message: str) -> None:
    print(f"edgeline: {message}", file=sys.stderr, flush=True)


def _titles(artifacts: list[Path]) -> str:
    return ", ".join(printable(str(path)) for path in artifacts)
