"""Classify images: `POST /predict`, or `PUT /predict`, the same route.

    body: an image                  -> the most likely classes
    body: multipart/form-data       -> the same for one file; for several, a result or an error for each
    ?top_k=5&explain=cam&model=NAME

The event loop only moves bytes: decoding and inference run on the engine's threads.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, EdgelineError, InputError
from edgeline.serve.explain import METHOD
from edgeline.serve.http.request_body import FORM_OVERHEAD, boundary_of, files_in, timeout_s
from edgeline.serve.http.service import Service
from edgeline.serve.inference.job import Answer

LOG = logging.getLogger(__name__)

PATH = "/predict"
METHODS = ("POST", "PUT")
"""`curl -T` sends PUT."""
DEFAULT_TOP_K = 5
MAX_EXPLAINED = 20
"""Classes of one image that are returned with their class activation map, which is a large table of numbers."""
LARGE_FORM_BYTES = 64 * 2**10
"""A larger form is parsed in a thread: the cost depends on its content."""

ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class PredictRoutes:
    """The routes that classify images."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def routes(self) -> list[Route]:
        """For `Starlette(routes=)`."""
        return [Route(PATH, self.predict, methods=METHODS)]

    async def predict(self, request: Request) -> Response:
        """Classify the image in the body, or each of the files in a form."""
        service = self.service
        name = request.query_params.get("model")
        classifier = service.classifier(name)
        top_k, max_s = _top_k(request), service.limits.deadline_s
        explain = _explain(request, classifier, top_k)
        within_s = min(timeout_s(request.headers) or max_s, max_s)
        service.admit(within_s)
        champion = None
        if name is None and not explain and (challenger := service.next_challenger()) is not None:
            champion, classifier = classifier, challenger
        boundary = boundary_of(request.headers)
        max_bytes = service.limits.images.max_bytes + (FORM_OVERHEAD if boundary else 0)
        async with service.budget.body(request, max_bytes) as body:
            if boundary is None:
                if champion is not None:
                    return await self._challenged(champion, classifier, body, top_k, within_s)
                answer = await service.answer(classifier, body, within_s, explain=explain)
                return _response(classifier, answer, top_k)
            if len(body) > LARGE_FORM_BYTES:
                images = await asyncio.to_thread(files_in, body, boundary)
            else:
                images = files_in(body, boundary)
            if len(images) == 1:
                answer = await service.answer(classifier, images[0], within_s, explain=explain)
                return _response(classifier, answer, top_k)
            return await self._several(classifier, images, top_k, within_s, explain)

    async def _several(
        self, classifier: Classifier, images: Sequence[bytes], top_k: int, within_s: float, explain: bool
    ) -> Response:
        """Answer each file separately: a bad one gets its own error."""
        running = (self.service.answer(classifier, image, within_s, explain=explain) for image in images)
        answers = await asyncio.gather(*running, return_exceptions=True)
        if explain:  # writing that many numbers would block the event loop
            body = await asyncio.to_thread(_results, classifier, answers, top_k)
        else:
            body = _results(classifier, answers, top_k)
        return Response(body, media_type="application/json")

    async def _challenged(
        self, champion: Classifier, challenger: Classifier, image: bytes, top_k: int, within_s: float
    ) -> Response:
        """Return the challenger's answer, or the champion's if the challenger fails; compare the two afterwards."""
        try:
            answer = await self.service.answer(challenger, image, within_s)
        except ArtifactError:
            LOG.exception("the challenger failed; the champion answers")
            self.service.metrics.compared.labels("failed").inc()
            return _response(champion, await self.service.answer(champion, image, within_s), top_k)
        response = _response(challenger, answer, top_k)
        label = challenger.rank(answer.probabilities_K, 1)[0].label
        response.background = BackgroundTask(self._compare, champion, image, within_s, label=label)
        return response

    async def _compare(self, champion: Classifier, image: bytes, within_s: float, *, label: str) -> None:
        """Run the champion too, and count whether it predicts the same class."""
        try:
            with self.service.budget.hold(len(image)):
                answer = await self.service.answer(champion, image, within_s)
        except EdgelineError:
            return
        same = champion.rank(answer.probabilities_K, 1)[0].label == label
        self.service.metrics.compared.labels("same" if same else "different").inc()


# --- what is returned -----------------------------------------------------------------------------------------------


def identity(classifier: Classifier) -> dict[str, str | int]:
    """Which model, version and variant a response is from."""
    manifest = classifier.manifest
    return {"model": manifest.name, "version": manifest.version, "variant": classifier.variant.name}


def prediction_payload(classifier: Classifier, answer: Answer, top_k: int) -> dict[str, Any]:
    """The most likely classes of one image as JSON types, best first; with their class activation maps if requested."""
    ranking = classifier.rank(answer.probabilities_K, top_k)
    predictions: list[dict[str, Any]] = [
        {"label": each.label, "probability": each.probability, "index": each.index} for each in ranking
    ]
    if answer.evidence_Khw is None:
        return {"predictions": predictions}
    for each in predictions:
        each["evidence"] = answer.evidence_Khw[each["index"]].tolist()
    return {"predictions": predictions, "explanation": {"method": METHOD, "region": answer.region}}


def prediction_body(classifier: Classifier, answer: Answer, top_k: int) -> bytes:
    """The response body for one image."""
    return ENCODE({**identity(classifier), **prediction_payload(classifier, answer, top_k)}).encode()


def server_timing(answer: Answer) -> str:
    """The `Server-Timing` header of one image, in milliseconds."""
    queue_ms, decode_ms, infer_ms = answer.queue_s * 1e3, answer.decode_s * 1e3, answer.infer_s * 1e3
    return f"queue;dur={queue_ms:.2f}, decode;dur={decode_ms:.2f}, infer;dur={infer_ms:.2f}"


def _response(classifier: Classifier, answer: Answer, top_k: int) -> Response:
    headers = {"Server-Timing": server_timing(answer)}
    return Response(prediction_body(classifier, answer, top_k), media_type="application/json", headers=headers)


def _results(classifier: Classifier, answers: Sequence[Answer | BaseException], top_k: int) -> bytes:
    results: list[dict[str, Any]] = []
    for found in answers:
        if isinstance(found, Answer):
            results.append(prediction_payload(classifier, found, top_k))
        elif isinstance(found, EdgelineError):
            results.append({"error": " ".join(str(found).split()), "code": found.code})
        else:
            raise found
    return ENCODE({**identity(classifier), "results": results}).encode()


# --- query parameters -----------------------------------------------------------------------------------------------


def _explain(request: Request, classifier: Classifier, top_k: int) -> bool:
    """Whether the request asks for an explanation.

    Raises:
        InputError: unknown method, too many classes, or the artifact has no class activation maps.
    """
    values = request.query_params.getlist("explain")
    if not values:
        return False
    if values != [METHOD]:
        raise InputError(f"explain must be given once, as {METHOD!r}, the only method", code="explain_invalid")
    if not classifier.explains:
        raise classifier.unexplained()
    if top_k > MAX_EXPLAINED:
        raise InputError(f"with explain, top_k may be at most {MAX_EXPLAINED}, got {top_k}", code="explain_invalid")
    return True


def _top_k(request: Request) -> int:
    values = request.query_params.getlist("top_k") or [str(DEFAULT_TOP_K)]
    [value, *more] = values
    if more or not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise InputError("top_k must be given once, as a whole number of at least 1", code="top_k_invalid")
    return int(value)
