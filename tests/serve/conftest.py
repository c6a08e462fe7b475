"""A real server for the HTTP tests, in a thread, on a free port of 127.0.0.1, stopped by its flag; and the command line."""

import contextlib
import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from flows.cli import main
from serve.app import create_app
from serve.classifier import Classifier
from serve.predictor import Predictor
from serve.preprocess import Limits
from serve.server import Server, listen, url_of

DEADLINE_S = 20


@dataclass
class Site:
    """A running server."""

    url: str
    client: httpx.Client
    predictor: Predictor

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
        while self.predictor.classifier is None and self.predictor.failure is None:
            assert time.monotonic() < deadline
            self.client.get("/healthz")


Serving = Callable[..., AbstractContextManager[Site]]


@contextlib.contextmanager
def _serving(
    artifact: Path,
    *,
    open_classifier: Callable[[Path], Classifier] = Classifier.open,
    limits: Limits = Limits(),
    store: Path | None = None,
    wait: bool = True,
) -> Iterator[Site]:
    predictor = Predictor(artifact, open_classifier, workers=2)
    app = create_app(predictor, limits=limits, store=store)
    started = threading.Event()

    def on_started() -> None:
        predictor.start()
        started.set()

    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    server = Server(app, grace_s=DEADLINE_S, on_started=on_started)
    thread = threading.Thread(target=server.run, args=([listener],), name="server under test")
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        with httpx.Client(base_url=url, timeout=DEADLINE_S) as client:
            site = Site(url, client, predictor)
            if wait:
                site.wait_until_loaded()
            yield site
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert predictor.close(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Serving:
    """`with serving(artifact, store=..., limits=..., open_classifier=..., wait=True) as site`."""
    return _serving


@pytest.fixture(scope="module")
def site(artifact_template: Path) -> Iterator[Site]:
    """The template artifact, served with its store; shared, so tests must not change it."""
    with _serving(artifact_template, store=artifact_template.parent.parent) as site:
        yield site


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="run")
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("predict", ...)`: exit code, stdout and stderr of the command."""

    def run(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeline", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
