"""The HTTP service: one classifier, and a store to download from.

    POST /predict?top_k=5     an image's bytes, or a form with one file; answers with the likeliest classes
    GET  /healthz             200 while the process lives
    GET  /readyz              200 once the artifact has proven itself here, else 503 with the reason
    /v2 ...                   the Open Inference Protocol, as `serve.v2` says
    GET  /artifacts ...       what `serve.downloads` says, where there is a store

`create_app` takes all it needs and keeps nothing in globals. The event loop only moves bytes: decoding, running and hashing
happen in threads, so `/healthz` answers while every worker is busy.
"""

from dataclasses import asdict
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.bodies import FORM_OVERHEAD, boundary_of, only_file, read_body
from serve.classifier import Classifier
from serve.downloads import Downloads
from serve.errors import InputError
from serve.predictor import Predictor
from serve.preprocess import Limits
from serve.replies import HANDLERS, RETRY_AFTER_S, Edge, error_reply
from serve.v2 import V2
from serve.v2_models import OneModel

DEFAULT_TOP_K = 5


def create_app(predictor: Predictor, *, limits: Limits = Limits(), store: Path | None = None) -> Starlette:
    """Build the service.

    Args:
        predictor: started by the caller, when the socket is open.
        limits: on bodies; the pixel limit is the classifier's own.
        store: whose artifacts may be downloaded; None serves no downloads.
    """
    api = Api(predictor, limits)
    routes = [
        Route("/predict", api.predict, methods=["POST"]),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
    ]
    routes += V2(OneModel(predictor)).routes()
    if store is not None:
        routes += Downloads(store).routes()
    app = Starlette(routes=routes, middleware=[Middleware(Edge)], exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # one resource, one address
    return app


class Api:
    """The routes about the model."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits

    async def predict(self, request: Request) -> Response:
        """Classify the image in the body."""
        classifier = self.predictor.classifier
        if classifier is None:
            return self._not_ready(request)
        top_k = _top_k(request)
        boundary = boundary_of(request.headers)
        body = await read_body(request, self.limits.max_bytes + (FORM_OVERHEAD if boundary else 0))
        image = body if boundary is None else await self.predictor.run(only_file, body, boundary)
        [predictions] = await self.predictor.run(classifier.predict, [image], top_k)
        return JSONResponse({**_identity(classifier), "predictions": [asdict(prediction) for prediction in predictions]})

    async def healthz(self, request: Request) -> Response:
        """Tell that the process lives and its event loop turns."""
        return JSONResponse({"status": "alive"}, headers={"Cache-Control": "no-store"})

    async def readyz(self, request: Request) -> Response:
        """Tell whether predictions are answered, with the proof or the reason."""
        classifier = self.predictor.classifier
        if classifier is None:
            return self._not_ready(request)
        proof = asdict(classifier.proof) if classifier.proof else None
        return JSONResponse({"status": "ready", **_identity(classifier), "proof": proof}, headers={"Cache-Control": "no-store"})

    def _not_ready(self, request: Request) -> Response:
        failure, headers = self.predictor.failure, {"Retry-After": str(RETRY_AFTER_S)}
        if failure is None:
            return error_reply(request, 503, "loading", "the artifact is being checked and loaded", headers)
        return error_reply(request, 503, failure.code, f"the artifact is not served: {failure.reason}", headers)


def _identity(classifier: Classifier) -> dict[str, str | int]:
    manifest = classifier.manifest
    return {"model": manifest.name, "version": manifest.version, "variant": classifier.variant.name}


def _top_k(request: Request) -> int:
    values = request.query_params.getlist("top_k") or [str(DEFAULT_TOP_K)]
    [value, *more] = values
    if more or not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise InputError("top_k must be given once, as a whole number of at least 1", code="top_k_invalid")
    return int(value)
