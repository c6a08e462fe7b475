"""The fast path of plain requests: `POST /predict` with one image as the body, complete when the head is looked at.

    Handlers(app, fast_path=FastPath(service, tokens))

On the event loop it is not the work that takes time: a worker has just evicted the caches, and every line of Python that a
request runs comes back from memory, several times slower than the same line in a loop. So this path is short: no task, no
future, no routing, no middleware; a few checks, the engine, and one write when a worker is done.

Everything else, and anything unusual about such a request, is left to the application. Both give the same response, byte for
byte except for ids and times.
"""

import time
from dataclasses import dataclass
from functools import partial

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Receive, Scope, Send

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import OverloadedError
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.load_shedding import overloaded
from edgeline.serve.http.middleware import RequestMiddleware, request_id_of
from edgeline.serve.http.responses import HANDLERS
from edgeline.serve.http.routes.predict import DEFAULT_TOP_K, PATH, prediction_body, server_timing
from edgeline.serve.http.service import Service
from edgeline.serve.http.transport.exchange import Request
from edgeline.serve.inference.job import Answer, Job

PLAIN_URL = PATH.encode()
TOP_K_URL = PLAIN_URL + b"?top_k="
TYPES = frozenset((b"application/octet-stream", *(b"image/" + kind for kind in (b"jpeg", b"png", b"webp", b"gif", b"bmp"))))
"""Common Content-Types of an image: those need no closer look."""
UNUSUAL = frozenset((b"content-encoding", b"transfer-encoding", b"expect", b"x-request-timeout-ms"))
"""Headers that change how a request is handled."""


@dataclass(eq=False, slots=True)
class _Pending:
    """A request that was handed to the engine."""

    request: Request
    request_id: str
    classifier: Classifier
    top_k: int
    begun: float
    size: int


class FastPath:
    """Hands plain requests straight to the engine."""

    def __init__(self, service: Service, tokens: Tokens | None = None) -> None:
        self.service = service
        self.tokens = tokens
        self._failed = RequestMiddleware(ExceptionMiddleware(_fail, handlers=HANDLERS), ended=self._ended)

    def __call__(self, request: Request) -> bool:
        """Handle a complete request; False leaves it to the application."""
        begun = time.perf_counter()
        service, top_k = self.service, _top_k(request.url)
        if request.method != "POST" or top_k == 0:
            return False
        classifier, image = service.models.current(), request.body()
        if classifier is None or service.models.challenger is not None:
            return False
        for name, value in request.headers:
            if name in UNUSUAL or (name == b"content-type" and value not in TYPES and _may_be_parsed(value)):
                return False
        if self.tokens is not None and not self.tokens.accept([v for name, v in request.headers if name == b"authorization"]):
            return False  # the application returns the error
        request_id = request_id_of(request.headers)
        if service.engine.full(service.limits.deadline_s):
            service.engine.stats.rejected += 1
            self._reject(request, request_id, begun)
            return True
        if len(image) > service.limits.images.max_bytes or service.budget.held + len(image) > service.budget.max_bytes:
            return False
        pending = _Pending(request, request_id, classifier, top_k, begun, len(image))
        try:
            job = service.engine.submit(classifier, image, service.limits.deadline_s, partial(self._done, pending))
        except OverloadedError:  # the expected cost has just grown, or the engine closes; `submit` has counted it
            self._reject(request, request_id, begun)
            return True
        service.budget.held += len(image)
        request.hand_over(partial(self._cancelled, job, len(image)))
        return True

    def _cancelled(self, job: Job, size: int) -> None:
        self.service.budget.held -= size
        self.service.engine.cancel(job)

    def _reject(self, request: Request, request_id: str, begun: float) -> None:
        request.reply(503, *overloaded(self.service, request_id))
        self.service.metrics.ended(PATH, request.method, 503, time.perf_counter() - begun)

    def _done(self, pending: _Pending, outcome: Answer | Exception) -> None:
        """Respond with the headers that the application and its middleware would have sent."""
        self.service.budget.held -= pending.size
        if not isinstance(outcome, Answer):
            pending.request.go(self._failed, {"failure": outcome, "begun": pending.begun})
            return
        body = prediction_body(pending.classifier, outcome, pending.top_k)
        headers = [
            (b"server-timing", server_timing(outcome).encode()),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"x-request-id", pending.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        pending.request.reply(200, headers, body)
        self.service.metrics.predicted(outcome, time.perf_counter() - pending.begun)

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        self.service.metrics.ended(PATH, scope["method"], status, time.perf_counter() - scope["state"]["begun"])
        if (code := scope["state"].get("code")) is not None:
            self.service.count_rejected(code)


def _may_be_parsed(content_type: bytes) -> bool:
    """Whether a Content-Type may be one that changes how the body is read; the application decides."""
    content_type = content_type.lower()
    return b"form-data" in content_type or b"json" in content_type


async def _fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise scope["state"]["failure"]


def _top_k(url: bytes) -> int:
    """The number of classes that a plain URL requests; 0 for a URL that is not plain."""
    if url == PLAIN_URL:
        return DEFAULT_TOP_K
    value = url.removeprefix(TOP_K_URL)
    return int(value) if len(value) < min(len(url), 4) and value.isdigit() else 0
