"""The routes of the Open Inference Protocol V2, under /v2, for `tritonclient.http`, perf_analyzer and KServe's clients.

    routes += V2(models).routes()

Only success is 200, and every error has the JSON shape of `serve.http.responses`, whose `error` is the string that these
clients read. The images of a request are answered one by one, so the answers for a batch are bit-identical to those for its
images alone.
"""

import asyncio
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeline.serve.artifact.reader import is_version
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import InputError, NotReadyError
from edgeline.serve.http.open_inference import decode
from edgeline.serve.http.open_inference import models as v2_models
from edgeline.serve.http.open_inference.encode import WINDOWS
from edgeline.serve.http.open_inference.infer import deadline_of, read_request, write_reply
from edgeline.serve.http.open_inference.models import Answer, ServableModels
from edgeline.serve.http.open_inference.statistics import Statistics
from edgeline.serve.http.open_inference.strict_json import parse, quoted
from edgeline.serve.http.request_body import Budget
from edgeline.serve.http.responses import RETRY_AFTER_S, error_reply, retry_after, status_of

MAX_BYTES = 64 * 2**20
"""Largest body, compressed or not; an image at the limit of `Limits` fits, and a batch of tensors."""
MAX_CONTROL_BYTES = 64 * 2**10
"""Largest body of other requests than inference."""
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
UNSUPPORTED = (
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/{model}/trace/setting",
    "/v2/models/{model}/versions/{version}/trace/setting",
    "/v2/models/{model}/generate",
    "/v2/models/{model}/generate_stream",
    "/v2/{kind}sharedmemory/{call}",
    "/v2/{kind}sharedmemory/region/{region}/{call}",
)


class V2:
    """The routes of the protocol."""

    def __init__(
        self, models: ServableModels, admit: Callable[[float], None], budget: Budget, *, max_bytes: int = MAX_BYTES
    ) -> None:
        """Build the routes' handler.

        Args:
            models: the served models.
            admit: called with a request's deadline in seconds, before its body is read; raises if it would be missed.
            budget: memory for the bodies of all requests.
            max_bytes: limit of one body, compressed or not.
        """
        self.models = models
        self.admit = admit
        self.budget = budget
        self.max_bytes = max_bytes
        self._version = version("edgeline")
        self._statistics: dict[tuple[str, int], Statistics] = {}

    def routes(self) -> list[Route]:
        """Return the routes for a Starlette application."""
        found = [
            Route("/v2", self.server),
            Route("/v2/", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.all_statistics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.reject_management, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.reject_management, methods=["POST"]),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            found += [
                Route(prefix, self.model),
                Route(f"{prefix}/ready", self.model_ready),
                Route(f"{prefix}/config", self.config),
                Route(f"{prefix}/stats", self.statistics),
                Route(f"{prefix}/infer", self.infer, methods=["POST"]),
            ]
        return found + [Route(path, self.unsupported, methods=["GET", "POST"]) for path in UNSUPPORTED]

    async def live(self, request: Request) -> Response:
        """Return 200 while the process is running."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Return 200 if every model is ready, else 503."""
        names = self.models.names()
        missing = [name for name in names if not self.models.versions(name)]
        if names and not missing:
            return JSONResponse({"live": True, "ready": True})
        reasons = "; ".join(f"{name}: {self._reason(name)}" for name in missing)
        return _unready(request, reasons or "no model is served", {"live": True})

    async def server(self, request: Request) -> Response:
        """Return the server's metadata."""
        return JSONResponse({"name": "edgeline", "version": self._version, "extensions": list(EXTENSIONS)})

    async def model(self, request: Request) -> Response:
        """Return a model's metadata."""
        model, classifier = self._find(request)
        named = [int(request.path_params["version"])] if "version" in request.path_params else None
        versions = named or self.models.versions(v2_models.artifact_name(model)[0])
        return JSONResponse(v2_models.metadata(model, classifier, versions))

    async def model_ready(self, request: Request) -> Response:
        """Return 200 if a model is ready, else 503."""
        try:
            model, _ = self._find(request)
        except NotReadyError as error:
            return _unready(request, str(error), {"name": request.path_params["model"]})
        return JSONResponse({"name": model, "ready": True})

    async def config(self, request: Request) -> Response:
        """Return a model's configuration."""
        model, classifier = self._find(request)
        return JSONResponse(v2_models.config(model, classifier))

    async def statistics(self, request: Request) -> Response:
        """Return a model's statistics, by version."""
        model, classifier = self._find(request)
        name, _ = v2_models.artifact_name(model)
        versions = [classifier.manifest.version] if "version" in request.path_params else self.models.versions(name)
        return JSONResponse({"model_stats": [self._of(model, each).describe(model, each) for each in versions]})

    async def all_statistics(self, request: Request) -> Response:
        """Return every model's statistics."""
        served = [
            (model, each)
            for name in self.models.names()
            for model in (name, name + v2_models.PIXELS)
            for each in self.models.versions(name)
        ]
        return JSONResponse({"model_stats": [self._of(model, each).describe(model, each) for model, each in served]})

    async def index(self, request: Request) -> Response:
        """Return every model and version, and whether it is ready."""
        async with self.budget.body(request, MAX_CONTROL_BYTES) as body:
            ready = parse(body, what="the request").get("ready", False) if body.strip() else False
        if type(ready) is not bool:
            raise InputError(f"ready must be true or false, got {quoted(ready)}")
        rows = [row for row in self.models.index() if row["state"] == "READY" or not ready]
        both = [row | {"name": row["name"] + end} for row in rows for end in ("", v2_models.PIXELS)]
        return JSONResponse([{key: value for key, value in row.items() if value or key != "version"} for row in both])

    async def reject_management(self, request: Request) -> Response:
        """Reject loading and unloading, which a client must not control."""
        raise InputError(
            "models cannot be loaded or unloaded over HTTP; publish a version into the store instead",
            code="management_not_offered",
        )

    async def unsupported(self, request: Request) -> Response:
        """Reject requests of extensions that are not supported."""
        return error_reply(request, 501, "not_supported", "this extension is not supported; GET /v2 lists those that are")

    async def infer(self, request: Request) -> Response:
        """Run a model on the images of a request."""
        begun_ns = time.perf_counter_ns()
        model, classifier = self._find(request)
        statistics = self._of(model, classifier.manifest.version)
        try:
            answers, decoded = await self._answers(request, classifier, model)
            answered_ns = time.perf_counter_ns()
            reply = await write_reply(request, model, classifier, answers, decoded)
        except Exception as error:
            statistics.failed(time.perf_counter_ns() - begun_ns)
            if isinstance(error, InputError) and error.code == "content_encoding_not_supported":
                return error_reply(request, status_of(error), error.code, str(error), {"Accept-Encoding": ", ".join(WINDOWS)})
            raise
        now_ns = time.perf_counter_ns()
        statistics.succeeded(answers, took_ns=now_ns - begun_ns, output_ns=now_ns - answered_ns)
        return reply

    async def _answers(self, request: Request, classifier: Classifier, model: str) -> tuple[list[Answer], decode.Request]:
        self.admit(deadline_of(request, 0) or math.inf)
        async with self.budget.body(request, self.max_bytes) as body:
            signature = v2_models.signature(classifier, pixels=v2_models.artifact_name(model)[1])
            decoded = await read_request(request, body, self.max_bytes, signature)
            items = [item if isinstance(item, np.ndarray) else bytes(item) for item in decoded.inputs["image"]]
            deadline_s = deadline_of(request, decoded.timeout_us)
            with self.budget.hold(sum(item.nbytes if isinstance(item, np.ndarray) else len(item) for item in items)):
                running = (self.models.answer(classifier, item, deadline_s) for item in items)
                # Waits for all of them, so that none is still running when the error of one is returned.
                found = await asyncio.gather(*running, return_exceptions=True)
        for position, answer in enumerate(found):
            if isinstance(answer, InputError):
                raise type(answer)(f"image[{position}]: {answer}", code=answer.code) from answer
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in found if isinstance(answer, Answer)], decoded

    def _find(self, request: Request) -> tuple[str, Classifier]:
        """Find the model of the path.

        Raises:
            InputError: no model has that name or version.
            NotReadyError: the model is not ready.
        """
        model, version = request.path_params["model"], request.path_params.get("version")
        name, _ = v2_models.artifact_name(model)
        if name not in self.models.names():
            raise InputError(f"no model is named {quoted(model)}; POST /v2/repository/index lists the models", code="not_found")
        if version is not None and not is_version(version):
            raise InputError(f"{quoted(version)} is not a version; versions are integers from 1", code="not_found")
        classifier = self.models.get(name, None if version is None else int(version))
        if classifier is not None:
            return model, classifier
        if version is not None and (versions := self.models.versions(name)):
            raise InputError(
                f"version {version} of {model} is not served; available: {', '.join(map(str, versions))}", code="not_found"
            )
        raise NotReadyError(f"{model} is not ready: {self._reason(name)}")

    def _reason(self, name: str) -> str:
        return next((row["reason"] for row in self.models.index() if row["name"] == name and row["reason"]), "not loaded")

    def _of(self, model: str, number: int) -> Statistics:
        return self._statistics.setdefault((model, number), Statistics())


def _unready(request: Request, reason: str, members: dict[str, Any]) -> Response:
    body = {**members, "ready": False, "error": " ".join(reason.split()), "code": "not_ready"}
    body["request_id"] = request.state.request_id
    return JSONResponse(body, 503, {"Retry-After": retry_after(RETRY_AFTER_S), "Cache-Control": "no-store"})
