"""The format of error responses, and the status of each exception.

    {"error": "<one line>", "code": "<stable slug>", "request_id": "..."}

The status depends on who has to act. Errors of the client are 4xx with the exception's own message. Errors of the operator
(artifact, store) are 503 and bugs are 500, both with a general message, because the details contain paths; the log has them
under the request id. Too much load is 503 with Retry-After, a missed deadline 503 or 504.
"""

import logging
import math
import random
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from edgeline.serve.errors import (
    ArtifactError,
    DeadlineError,
    EdgelineError,
    ImageError,
    InputError,
    NotReadyError,
    OverloadedError,
    StoreError,
)

LOG = logging.getLogger(__name__)

STATUS = {
    "body_too_large": 413,
    "content_encoding_not_supported": 415,
    "image_empty": 400,
    "image_too_large": 413,
    "management_not_offered": 403,
    "media_type_not_supported": 415,
    "model_unknown": 404,
    "not_found": 404,
    "precondition_failed": 412,
    "range_not_satisfiable": 416,
}
"""Statuses of client errors that are neither 422 (an image) nor 400 (anything else), by code."""

ROUTING = {
    404: (
        "not_found",
        "no such route; the routes are POST /predict, GET /healthz, GET /readyz, GET /artifacts and those under /v2",
    ),
    405: ("method_not_allowed", "method not allowed; the Allow header lists the allowed methods"),
}
"""Code and message of the router's errors, by status."""

RETRY_AFTER_S = 1.0
"""For clients that arrive before the model is ready; loading takes a second or two."""
MAX_RETRY_AFTER_S = 60.0


def status_of(error: InputError) -> int:
    """The status of a client error; always 4xx."""
    return STATUS.get(error.code, 422 if isinstance(error, ImageError) else 400)


def error_reply(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Build an error response."""
    request.state.code = code  # for the metrics
    body = {"error": " ".join(message.split()), "code": code, "request_id": request.state.request_id}
    return JSONResponse(body, status, {"Cache-Control": "no-store", **(headers or {})})


def retry_after(seconds: float) -> str:
    """A Retry-After of at least that long, plus up to 2 s at random so that clients do not all return at once."""
    return str(math.ceil(min(seconds, MAX_RETRY_AFTER_S) + random.random() * 2))


async def _client_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    return error_reply(request, status_of(error), error.code, str(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message = ROUTING.get(error.status_code, ("bad_request", error.detail))
    return error_reply(request, error.status_code, code, message, error.headers)


async def _operator_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgelineError)
    LOG.error("request %s: %s [%s]", request.state.request_id, error, error.code)
    if error.code == "model_output_not_finite":
        return error_reply(request, 500, error.code, "the model's output for this image is not finite")
    message = "the published files are damaged or incomplete; they are not served until the operator has fixed them"
    return error_reply(request, 503, error.code, message)


async def _overloaded(request: Request, error: Exception) -> Response:
    assert isinstance(error, OverloadedError)
    return error_reply(request, 503, error.code, str(error), {"Retry-After": retry_after(error.retry_after_s)})


async def _not_ready(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotReadyError)
    return error_reply(request, 503, error.code, str(error), {"Retry-After": retry_after(RETRY_AFTER_S)})


async def _deadline_exceeded(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeadlineError)
    return error_reply(request, 504 if error.started else 503, error.code, str(error), {"Retry-After": retry_after(1.0)})


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # never sent


HANDLERS: dict[type[Exception], ExceptionHandler] = {
    InputError: _client_error,
    OverloadedError: _overloaded,
    NotReadyError: _not_ready,
    DeadlineError: _deadline_exceeded,
    ArtifactError: _operator_error,
    StoreError: _operator_error,
    HTTPException: _no_route,
    ClientDisconnect: _disconnected,
}
"""For `Starlette(exception_handlers=)`."""
