"""The short way of the plain request: `POST /predict` whose body is one image and came whole, with its head.

    server.connections.express = FastPath(service, tokens)

On the event loop it is not the work that takes time. A runner has just emptied the caches, and every line of Python that a
request meets comes back from memory, at several times the cost of the same line in a loop. So this way is short. No task, no
future, no routing, no middleware: checks, the engine, and one write when a runner is done.

Everything else goes the application's way, and so does whatever is unusual about such a request. What both ways answer is the
same, byte for byte but for ids and times.
"""

import time
from functools import partial

from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Receive, Scope, Send

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import OverloadedError
from edgeline.serve.http.app import DEFAULT_TOP_K, Service
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.load_shedding import ROUTE, refusal
from edgeline.serve.http.responses import HANDLERS, Edge, request_id_of
from edgeline.serve.http.routes.predict import prediction, server_timing
from edgeline.serve.http.transport.exchange import Request
from edgeline.serve.inference.job import Answer, Job

PATH = ROUTE.encode()
TOP_K = PATH + b"?top_k="
TYPES = frozenset((b"application/octet-stream", *(b"image/" + kind for kind in (b"jpeg", b"png", b"webp", b"gif", b"bmp"))))
UNUSUAL = frozenset((b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"x-request-timeout-ms"))
"""Headers that change what is to be done."""


class FastPath:
    """Answers plain requests on the event loop's side of the engine."""

    def __init__(self, service: Service, tokens: Tokens | None = None) -> None:
        self.service = service
        self.tokens = tokens
        self._failed = Edge(ExceptionMiddleware(_fail, handlers=HANDLERS), ended=self._ended)

    def __call__(self, request: Request) -> bool:
        """Take a request that is whole; False leaves it to the application."""
        begun = time.perf_counter()
        service, top_k = self.service, _top_k(request.url)
        if request.method != "POST" or top_k == 0:
            return False
        classifier, image = service.models.current(), request.body()
        if classifier is None or service.models.challenger is not None:
            return False
        for name, value in request.headers:
            if name in UNUSUAL or (name == b"content-type" and value not in TYPES):
                return False
        if self.tokens is not None and not self.tokens.accept([v for name, v in request.headers if name == b"authorization"]):
            return False  # the application says why
        request_id = request_id_of(request.headers)
        if service.engine.full(service.terms.deadline_s):
            service.engine.stats.rejected += 1
            self._refuse(request, request_id, begun)
            return True
        if len(image) > service.terms.limits.max_bytes or service.budget.held + len(image) > service.budget.most:
            return False
        done = partial(self._done, request, request_id, classifier, top_k, begun, len(image))
        try:
            job = service.engine.submit(classifier, image, service.terms.deadline_s, done)
        except OverloadedError:  # a runner has just found out that images cost more, or the engine closes; it has counted
            self._refuse(request, request_id, begun)
            return True
        service.budget.held += len(image)
        request.hand_over(partial(self._gone, job, len(image)))
        return True

    def _gone(self, job: Job, size: int) -> None:
        self.service.budget.held -= size
        self.service.engine.cancel(job)

    def _refuse(self, request: Request, request_id: str, begun: float) -> None:
        request.reply(503, *refusal(self.service, request_id))
        self.service.metrics.ended(ROUTE, "POST", 503, time.perf_counter() - begun)

    def _done(
        self,
        request: Request,
        request_id: str,
        classifier: Classifier,
        top_k: int,
        begun: float,
        size: int,
        outcome: Answer | Exception,
    ) -> None:
        """Answer, with the headers that the application and its edge would have sent."""
        self.service.budget.held -= size
        if not isinstance(outcome, Answer):
            request.go(self._failed, {"failure": outcome, "begun": begun})
            return
        body = prediction(classifier, outcome, top_k)
        headers = [
            (b"server-timing", server_timing(outcome).encode()),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        request.reply(200, headers, body)
        self.service.metrics.predicted(outcome, time.perf_counter() - begun)

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        self.service.metrics.ended(ROUTE, scope["method"], status, time.perf_counter() - scope["state"]["begun"])
        if (code := scope["state"].get("code")) is not None:
            self.service.refused(code)


async def _fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise scope["state"]["failure"]


def _top_k(url: bytes) -> int:
    """How many classes a plain address asks for, 0 for one that is not plain."""
    if url == PATH:
        return DEFAULT_TOP_K
    asked = url.removeprefix(TOP_K)
    return int(asked) if len(asked) < min(len(url), 4) and asked.isdigit() else 0
