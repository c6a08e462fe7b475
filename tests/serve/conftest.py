"""A real server for the HTTP tests, in a thread, on a free port of 127.0.0.1."""

import contextlib
import io
import json
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.types import ASGIApp

from edgeline.flows.cli.main import main
from edgeline.serve.artifact.channels import Followed
from edgeline.serve.classifier import Classifier
from edgeline.serve.http.app import AppOptions, create_app
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.fast_path import FastPath
from edgeline.serve.http.service import Service, ServingLimits
from edgeline.serve.http.transport import server as transport
from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers, affordable
from edgeline.serve.http.transport.exchange import Request
from edgeline.serve.http.transport.server import Hooks, Server, listen, url_of
from edgeline.serve.inference.drift_observer import DriftObserver
from edgeline.serve.inference.job import Answer, Job
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import ConcurrencyPlan, Engine
from edgeline.serve.inference.slot import Loading
from edgeline.serve.preprocess import Limits
from edgeline.serve.runtime.session import create_session
from tests.support.loading import TestLoader

DEADLINE_S = 20


class WatchedFastPath(FastPath):
    """Records which requests it handles."""

    def __init__(self, service: Service, tokens: Tokens | None) -> None:
        super().__init__(service, tokens)
        self.taken: list[bool] = []

    def __call__(self, request: Request) -> bool:
        self.taken.append(super().__call__(request))
        return self.taken[-1]


@dataclass
class Site:
    """A running server."""

    url: str
    client: httpx.Client
    service: Service
    server: Server
    fast: list[bool]
    """Whether the fast path handled each request that it received."""

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
        while any(isinstance(slot.state, Loading) for slot in slots):
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
    plan: ConcurrencyPlan = ConcurrencyPlan(workers=2, threads=1),
    connections: ConnectionLimits = ConnectionLimits(),
    challenger: Path | None = None,
    queue: int = 64,
    serving_limits: ServingLimits | None = None,
    fast_path: bool = False,
    drift: DriftObserver | None = None,
    on_answer: Callable[[Job, Answer], None] | None = None,
    wrap_app: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    **options: Any,
) -> Iterator[Site]:
    if on_answer is None and drift is not None:
        on_answer = drift.record
    engine = Engine(queue_limit=queue, on_answer=on_answer)
    loader = TestLoader(open_classifier, start=lambda: engine.start(plan), max_pixels=limits.max_pixels)
    models = ModelRepository(artifacts, loader, challenger=None if challenger is None else Followed(challenger), poll_s=0.05)
    open_ones = Connections(connections, affordable(connections))
    service = Service(
        models,
        engine,
        serving_limits or ServingLimits(images=limits, deadline_s=DEADLINE_S),
        drift=drift,
        open_connections=lambda: len(open_ones.open),
    )
    started = threading.Event()

    def on_started() -> None:
        models.start()
        started.set()

    def stopping() -> None:
        service.stopping = True

    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    app = wrap_app(create_app(service, AppOptions(store=store, **options)))
    fast = WatchedFastPath(service, options.get("tokens")) if fast_path else None
    handlers = Handlers(app, fast_path=fast or (lambda request: False), on_rejected=service.count_rejected)
    server = Server(handlers, open_ones, hooks=Hooks(started=on_started, stopping=stopping), grace_s=DEADLINE_S)
    thread = threading.Thread(target=server.run, args=(listener,), name="server under test")
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        # Loading the certificates takes longer than most tests, and the server speaks plain HTTP.
        with httpx.Client(base_url=url, timeout=DEADLINE_S, verify=False) as client:
            site = Site(url, client, service, server, [] if fast is None else fast.taken)
            if wait:
                site.wait_until_loaded()
            yield site
    finally:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "LAME_DUCK_S", 0)  # no load balancer needs time to notice
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


@pytest.fixture(scope="session")
def explaining_template(artifact_template: Path, seal: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete artifact with class activation maps, in `<store>/colors/1`: its map is the picture, 3 x 4 positions."""
    from tests.support.explaining import explain_itself

    folder = tmp_path_factory.mktemp("explaining") / "colors" / "1"
    shutil.copytree(artifact_template, folder)
    return explain_itself(folder, seal)


def _relabeled(folder: Path, labels: Sequence[str], evaluation: object, card: str | None) -> Path:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "model.onnx")
    weights, bias = (numpy_helper.to_array(held) for held in model.graph.initializer[1:])
    more = len(labels) - len(bias)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.pad(weights, ((0, 0), (0, more))), "weights"))
    model.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(np.pad(bias, (0, more), constant_values=np.float32(-9)), "bias")
    )
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = len(labels)
    session = create_session(model.SerializeToString(), threads=1)
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    for sample, label in zip(golden["samples"], labels, strict=False):
        pixels = np.asarray(Image.open(folder / sample["pixels"]))
        [probabilities], [logits] = session.run(["probabilities", "logits"], {"image": pixels[None]})
        sample |= {"label": label, "probabilities": probabilities.tolist(), "logits": logits.tolist()}
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    if card is not None:
        (folder / "card.md").write_text(card, encoding="utf-8")
    return folder


@pytest.fixture
def relabeled(make_artifact: Callable[..., Path], seal: Callable[..., Path]) -> Callable[..., Path]:
    """`relabeled(labels, evaluation=None, card=None)`: the colors renamed; classes after the fourth are never predicted."""

    def make(labels: Sequence[str], evaluation: object = None, card: str | None = None) -> Path:
        folder = _relabeled(make_artifact(), labels, evaluation, card)
        outputs = [{"name": n, "dtype": "float32", "shape": ["batch", len(labels)]} for n in ("probabilities", "logits")]
        return seal(folder, labels=list(labels), outputs=outputs)

    return make


def _evaluated(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> dict[str, object]:
    hits, called, support = ([*map(int, held)] for held in (np.diag(confusion), np.sum(confusion, 0), np.sum(confusion, 1)))

    def share(correct: int) -> dict[str, float]:
        value = correct / sum(support)
        return {"value": value, "low": value * 0.95, "high": value + (1 - value) / 2, "correct": correct, "total": sum(support)}

    return {
        "schema": "edgeline.evaluation/1",
        "labels": list(labels),
        "images": sum(support),
        "device": "cpu",
        "top1": share(sum(hits)),
        "top5": share(sum(support)) if len(labels) > 5 else None,
        "classes": [
            {"label": name, "precision": h / max(c, 1), "recall": h / max(s, 1), "f1": 2 * h / max(c + s, 1), "support": s}
            for name, h, c, s in zip(labels, hits, called, support, strict=True)
        ],
        "macro": {"precision": 0.9, "recall": 0.9, "f1": 0.9},
        "confusion": [list(row) for row in confusion],
        "calibration": {
            "temperature": 1.1,
            "bins": 15,
            "ece_before": 0.05,
            "ece_after": 0.02,
            "nll_before": 0.3,
            "nll_after": 0.2,
        },
        "mistakes": [],
    }


@pytest.fixture(scope="session")
def evaluated() -> Callable[..., dict[str, object]]:
    """`evaluated(confusion, labels)`: an `evaluation.json` with that confusion matrix."""
    return _evaluated


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
