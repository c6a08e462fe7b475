"""A real server for the HTTP tests: on a free port of 127.0.0.1, in a thread, stopped from outside."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.app import Service, Terms, create_app
from serve.classifier import Classifier
from serve.connection import ConnectionLimits
from serve.engine import Engine, Plan
from serve.models import Models
from serve.preprocess import Limits
from serve.server import Hooks, Server, listen, url_of

DEADLINE_S = 20


@dataclass
class Site:
    """A running server."""

    url: str
    client: httpx.Client
    service: Service
    server: Server

    def connect(self) -> socket.socket:
        """A plain connection, for requests that no client library would send."""
        url = httpx.URL(self.url)
        return socket.create_connection((url.host, url.port or 0), timeout=DEADLINE_S)

    def raw(self, request: bytes) -> bytes:
        """Send bytes and return all that comes back before the server closes."""
        with self.connect() as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def wait_until_loaded(self) -> None:
        """Return as soon as the artifact is ready, or has failed."""
        deadline = time.monotonic() + DEADLINE_S
        slots = self.service.models.slots
        while any(slot.current is None and slot.failure is None for slot in slots):
            assert time.monotonic() < deadline
            self.client.get("/healthz")


Serving = Callable[..., AbstractContextManager[Site]]


@contextlib.contextmanager
def _serving(
    *artifacts: Path,
    open_classifier: Callable[[Path], Classifier] = Classifier.open,
    limits: Limits = Limits(),
    store: Path | None = None,
    wait: bool = True,
    plan: Plan = Plan(runners=2, threads=1),
    connections: ConnectionLimits = ConnectionLimits(),
    challenger: Path | None = None,
    queue: int = 64,
    terms: Terms | None = None,
    **options: Any,
) -> Iterator[Site]:
    engine = Engine(queue_limit=queue)
    models = Models(artifacts, open_classifier, challenger=challenger, max_pixels=limits.max_pixels, poll_s=0.05)

    def first(classifier: Classifier) -> Classifier:
        engine.start(plan)
        return classifier

    models.on_first = first
    service = Service(models, engine, terms or Terms(limits=limits, deadline_s=DEADLINE_S))
    started = threading.Event()

    def on_started() -> None:
        models.start()
        started.set()

    def stopping() -> None:
        service.stopping = True

    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    app = create_app(service, store=store, **options)
    server = Server(app, hooks=Hooks(started=on_started, stopping=stopping), grace_s=DEADLINE_S, limits=connections)
    server.connections.refused = service.refused
    thread = threading.Thread(target=server.run, args=(listener,), name="server under test")
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
            site = Site(url, client, service, server)
            if wait:
                site.wait_until_loaded()
            yield site
    finally:
        server.stop()
        thread.join(DEADLINE_S)
        assert models.close(DEADLINE_S)
        assert engine.close(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Serving:
    """`with serving(artifact, ..., store=..., limits=..., plan=..., wait=True) as site`."""
    return _serving


@pytest.fixture(scope="module")
def site(artifact_template: Path) -> Iterator[Site]:
    """The template artifact, served with its store; shared, so tests must not change it."""
    with _serving(artifact_template, store=artifact_template.parent.parent) as site:
        yield site
