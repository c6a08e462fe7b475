"""The HTTP service: one or more classifiers, and a store to download from.

    POST /predict?top_k=5     an image's bytes, or a form with files; answers with the likeliest classes
    GET  /healthz             200 while the process lives
    GET  /readyz              200 while every artifact has proven itself here, else 503 with the reason
    GET  /metrics, /drift     what Prometheus reads, and what `edgeline drift` does
    GET  /openapi.json        all of this for machines
    GET  /, /model ...        the web page, and what it shows of the model; see `serve.http.routes.page`
    /v2 ...                   the Open Inference Protocol, as `serve.http.open_inference.routes` says
    GET  /artifacts ...       what `serve.http.routes.downloads` says, where there is a store

`create_app` takes all it needs and keeps nothing in globals. The event loop only moves bytes: decoding, running and hashing
happen in threads, so `/healthz` answers while every runner is busy.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, EdgelineError, InputError, OverloadedError
from edgeline.serve.explain import METHOD
from edgeline.serve.http.auth import Guard, Tokens
from edgeline.serve.http.observability.logs import log_request
from edgeline.serve.http.observability.metrics import Metrics
from edgeline.serve.http.open_inference.models import Served
from edgeline.serve.http.open_inference.routes import V2
from edgeline.serve.http.openapi.document import openapi_route
from edgeline.serve.http.request_body import FORM_OVERHEAD, Budget, boundary_of, files_in, timeout_s
from edgeline.serve.http.responses import HANDLERS, RETRY_AFTER_S, Edge, error_reply, retry_after
from edgeline.serve.http.routes.downloads import Downloads
from edgeline.serve.http.routes.page import page_routes
from edgeline.serve.http.routes.predict import ENCODE, identity, prediction, said, server_timing
from edgeline.serve.inference.job import Answer
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import Engine
from edgeline.serve.preprocess import Limits

if TYPE_CHECKING:
    from edgeline.serve.inference.drift_observer import DriftObserver

LOG = logging.getLogger(__name__)

DEFAULT_TOP_K = 5
MOST_EXPLAINED = 20
"""Classes of one image that come with their evidence: each is a table of numbers to be written out."""
BIG_FORM = 64 * 2**10
"""A form over it is taken apart in a thread: what a form costs depends on what is in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingLimits:
    """What a request may ask for, and how long it may take."""

    limits: Limits = Limits()
    deadline_s: float = 10.0
    """For a request that names none, and the most that one may name."""
    held_bytes: int = 256 * 2**20
    """Of all requests' bodies together."""
    challenger_share: float = 0.0
    """Of the requests for the first name, those that the challenger answers."""


class Service:
    """What the routes share: the models, the engine, and whether the server is about to stop."""

    def __init__(self, models: ModelRepository, engine: Engine, terms: ServingLimits) -> None:
        self.models = models
        self.engine = engine
        self.terms = terms
        self.budget = Budget(terms.held_bytes)
        self.stopping = False
        self.metrics = Metrics(engine, models, lambda: self.connections())
        self.observed: DriftObserver | None = None
        """Drift statistics, where they are kept."""
        self.connections: Callable[[], int] = lambda: 0
        """How many connections are open; the server sets it."""
        self._due = 0.0

    def refused(self, code: str) -> None:
        """Count a request that got an error, by the error's code."""
        self.metrics.rejected.labels(code).inc()

    def admit(self, within_s: float) -> None:
        """Refuse a request of which it is clear before a byte of its body is read that it would not be answered in time.

        Under overload this is what the server has to do most.

        Raises:
            OverloadedError: as `Engine.answer`.
        """
        if self.engine.full(min(within_s, self.terms.deadline_s)):
            self.engine.stats.rejected += 1
            raise OverloadedError(retry_after_s=self.engine.wait_s())

    async def answer(
        self, classifier: Classifier, item: bytes | np.ndarray, within_s: float, *, explain: bool = False
    ) -> Answer:
        """Have the engine answer one image, and count it."""
        answer = await self.engine.answer(classifier, item, within_s, explain=explain)
        self.metrics.answered(answer)
        return answer

    def challenger(self) -> Classifier | None:
        """The challenger, if it is its turn."""
        slot = self.models.challenger
        if slot is None or slot.current is None:
            return None
        self._due += self.terms.challenger_share
        if self._due < 1:
            return None
        self._due -= 1
        return slot.current


def create_app(
    service: Service,
    *,
    store: Path | None = None,
    metrics: bool = True,
    tokens: Tokens | None = None,
    cors: Sequence[str] = (),
    access_log: bool = False,
) -> Starlette:
    """Build the service.

    Args:
        service: its models and engine are started by the caller, when the socket is open.
        store: whose artifacts may be downloaded; None serves no downloads.
        metrics: whether `/metrics` and `/drift` are among the routes; not where others than this machine may ask.
        tokens: of which every request must name one, but for health and the page's files; None lets everybody in.
        cors: origins whose pages may ask from a browser.
        access_log: whether each request is a line in the log.
    """
    api = Api(service)
    routes = [
        Route("/predict", api.predict, methods=["POST"]),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
    ]
    if metrics:
        routes += [Route("/metrics", api.metrics), Route("/drift", api.drift)]
    routes += page_routes(service.models.current, api.not_ready)
    routes += V2(Served(service.models, service.answer, service.terms.deadline_s), service.admit, service.budget).routes()
    if store is not None:
        routes += Downloads(store).routes()
    routes.append(openapi_route(routes, service.terms.limits, secured=tokens is not None))
    patterns = {route.path for route in routes}

    def ended(scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        pattern = route.path if isinstance(route, Route) and route.path in patterns else "other"
        service.metrics.ended(pattern, scope["method"], status, seconds)
        if (code := scope["state"].get("code")) is not None:
            service.refused(code)
        if access_log:
            log_request(scope, pattern, status, seconds)

    middleware = [Middleware(Edge, ended=ended)]
    if cors:
        middleware.append(Middleware(CORSMiddleware, allow_origins=cors, allow_methods=["GET", "POST"], allow_headers=["*"]))
    if tokens is not None:
        middleware.append(Middleware(Guard, tokens=tokens))
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # one resource, one address
    return app


def metrics_app(service: Service) -> Starlette:
    """Build an application that gives the service's metrics and drift, and nothing else."""
    api = Api(service)
    routes = [Route("/metrics", api.metrics), Route("/drift", api.drift)]
    return Starlette(routes=routes, middleware=[Middleware(Edge)], exception_handlers=HANDLERS)


class Api:
    """The routes about the model."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def predict(self, request: Request) -> Response:
        """Classify the image in the body, or each of the files in a form."""
        service = self.service
        name = request.query_params.get("model")
        classifier = service.models.current(name)
        if classifier is None:
            return self._no_model(request, name)
        top_k, most_s = _top_k(request), service.terms.deadline_s
        explain = _explain(request, classifier, top_k)
        within_s = min(timeout_s(request.headers) or most_s, most_s)
        service.admit(within_s)
        champion = None
        if name is None and not explain and (challenger := service.challenger()) is not None:
            champion, classifier = classifier, challenger
        boundary = boundary_of(request.headers)
        most = service.terms.limits.max_bytes + (FORM_OVERHEAD if boundary else 0)
        async with service.budget.body(request, most) as body:
            if boundary is None:
                if champion is not None:
                    return await self._challenged(champion, classifier, body, top_k, within_s)
                answer = await service.answer(classifier, body, within_s, explain=explain)
                return _prediction(classifier, answer, top_k)
            if len(body) > BIG_FORM:
                images = await asyncio.to_thread(files_in, body, boundary)
            else:
                images = files_in(body, boundary)
            if len(images) == 1:
                answer = await service.answer(classifier, images[0], within_s, explain=explain)
                return _prediction(classifier, answer, top_k)
            return await self._many(classifier, images, top_k, within_s, explain)

    async def _many(
        self, classifier: Classifier, images: Sequence[bytes], top_k: int, within_s: float, explain: bool
    ) -> Response:
        """Each file's own answer, or its own error."""
        asked = (self.service.answer(classifier, image, within_s, explain=explain) for image in images)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if explain:  # so many numbers that others would wait for their digits
            body = await asyncio.to_thread(_results, classifier, answers, top_k)
        else:
            body = _results(classifier, answers, top_k)
        return Response(body, media_type="application/json")

    async def _challenged(
        self, champion: Classifier, challenger: Classifier, image: bytes, top_k: int, within_s: float
    ) -> Response:
        """The challenger's answer; the champion's, where the challenger is at fault. What both say is compared afterwards."""
        try:
            answer = await self.service.answer(challenger, image, within_s)
        except ArtifactError:
            LOG.exception("the challenger failed; the champion answers")
            self.service.metrics.compared.labels("failed").inc()
            return _prediction(champion, await self.service.answer(champion, image, within_s), top_k)
        reply = _prediction(challenger, answer, top_k)
        label = challenger.rank(answer.probabilities_K, 1)[0].label
        reply.background = BackgroundTask(self._compare, champion, image, within_s, label=label)
        return reply

    async def _compare(self, champion: Classifier, image: bytes, within_s: float, *, label: str) -> None:
        """Ask the champion too, and count whether it says the same."""
        try:
            with self.service.budget.hold(len(image)):
                answer = await self.service.answer(champion, image, within_s)
        except EdgelineError:
            return
        same = champion.rank(answer.probabilities_K, 1)[0].label == label
        self.service.metrics.compared.labels("same" if same else "different").inc()

    async def healthz(self, request: Request) -> Response:
        """Tell that the process lives and its event loop turns."""
        return JSONResponse({"status": "alive"}, headers={"Cache-Control": "no-store"})

    async def readyz(self, request: Request) -> Response:
        """Tell whether predictions are answered, with the proof or the reason."""
        models = self.service.models
        if self.service.stopping:
            return error_reply(request, 503, "stopping", "the server stops; it answers what it has taken in")
        classifier = models.current()
        if classifier is None or not models.ready:
            return self.not_ready(request)
        slot = models.slots[0]
        told: dict[str, Any] = {"status": "ready", **identity(classifier)}
        told["proof"] = asdict(classifier.proof) if classifier.proof else None
        told["previous"] = slot.previous.manifest.version if slot.previous else None
        told["rolled_back_from"] = slot.rolled_back_from
        told["refused"] = asdict(slot.rejected_version) if slot.rejected_version else None
        if len(models.slots) > 1 or models.challenger is not None:
            told["index"] = models.index()
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        """Give what was counted."""
        self.service.metrics.fold()
        data = await asyncio.to_thread(generate_latest, self.service.metrics.registry)
        return Response(data, headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"})

    async def drift(self, request: Request) -> Response:
        """Give the statistics of what a model has met, as a snapshot for `edgeline drift`."""
        observed = self.service.observed
        if observed is None:
            raise InputError("no drift statistics are kept; start the server with --drift", code="not_found")
        name = request.query_params.get("model")
        classifier = self.service.models.current(name)
        if classifier is None:
            return self._no_model(request, name)
        headers = {"Cache-Control": "no-store"}
        return JSONResponse(await asyncio.to_thread(observed.snapshot, classifier), headers=headers)

    def _no_model(self, request: Request, name: str | None) -> Response:
        if name is not None and self.service.models.ready:
            names = ", ".join(self.service.models.names())
            raise InputError(f"no artifact of that name is served; there is {names}", code="model_unknown")
        return self.not_ready(request)

    def not_ready(self, request: Request) -> Response:
        """Say why nothing is answered yet."""
        headers = {"Retry-After": retry_after(RETRY_AFTER_S)}
        failure = next((slot.failure for slot in self.service.models.slots if slot.failure is not None), None)
        if failure is None:
            return error_reply(request, 503, "loading", "the artifact is being checked and loaded", headers)
        return error_reply(request, 503, failure.code, f"the artifact is not served: {failure.reason}", headers)


def _results(classifier: Classifier, answers: Sequence[Answer | BaseException], top_k: int) -> bytes:
    results: list[dict[str, Any]] = []
    for found in answers:
        if isinstance(found, Answer):
            results.append(said(classifier, found, top_k))
        elif isinstance(found, EdgelineError):
            results.append({"error": " ".join(str(found).split()), "code": found.code})
        else:
            raise found
    return ENCODE({**identity(classifier), "results": results}).encode()


def _prediction(classifier: Classifier, answer: Answer, top_k: int) -> Response:
    headers = {"Server-Timing": server_timing(answer)}
    return Response(prediction(classifier, answer, top_k), media_type="application/json", headers=headers)


def _explain(request: Request, classifier: Classifier, top_k: int) -> bool:
    """Whether the request asks why.

    Raises:
        InputError: in a way that is not known, of too many classes, or of an artifact that cannot say.
    """
    values = request.query_params.getlist("explain")
    if not values:
        return False
    if values != [METHOD]:
        raise InputError(f"explain must be given once, as {METHOD!r}, the one way there is", code="explain_invalid")
    if not classifier.explains:
        raise classifier.unexplained()
    if top_k > MOST_EXPLAINED:
        raise InputError(f"with explain, top_k may be {MOST_EXPLAINED} at most, got {top_k}", code="explain_invalid")
    return True


def _top_k(request: Request) -> int:
    values = request.query_params.getlist("top_k") or [str(DEFAULT_TOP_K)]
    [value, *more] = values
    if more or not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise InputError("top_k must be given once, as a whole number of at least 1", code="top_k_invalid")
    return int(value)
