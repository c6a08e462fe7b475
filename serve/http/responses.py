"""What every HTTP answer has in common: one shape of errors and a request id.

    {"error": "<one line>", "code": "<stable slug>", "request_id": "..."}

Who is at fault decides the status: callers get 4xx with the error's own words. The operator's faults (artifact, store) are
503 and ours are 500, both in general words, because their details hold paths; the log has them under the request id. Nobody's
are 503 with Retry-After (too much to do) and 504 (too late).
"""

import logging
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

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
"""Codes of the caller's faults whose status is neither 422 (an image) nor 400 (anything else)."""

ROUTING = {
    404: (
        "not_found",
        "nothing is here; there are POST /predict, GET /healthz, GET /readyz, GET /artifacts and the routes under /v2",
    ),
    405: ("method_not_allowed", "this address takes another method; the Allow header names it"),
}
"""Code and sentence of what the router refuses."""

RETRY_AFTER_S = 1.0
"""What a client that came before the model was ready is told to wait; loading takes a second or two."""
MOST_PATIENCE_S = 60.0
REQUEST_ID = re.compile(r"[!-~]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that a request names, or a new one."""
    wanted = next((value for name, value in headers if name == b"x-request-id"), b"").decode("latin-1")
    # Not from `secrets`: an id is no secret, and a system call would give way to the runners at every request.
    return wanted if REQUEST_ID.fullmatch(wanted) else f"{random.getrandbits(64):016x}"


def status_of(error: InputError) -> int:
    """The status of a caller's fault; always 4xx."""
    return STATUS.get(error.code, 422 if isinstance(error, ImageError) else 400)


def error_reply(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer in the one shape that errors have."""
    request.state.code = code  # for who counts
    body = {"error": " ".join(message.split()), "code": code, "request_id": request.state.request_id}
    return JSONResponse(body, status, {"Cache-Control": "no-store", **(headers or {})})


async def _callers_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    return error_reply(request, status_of(error), error.code, str(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message = ROUTING.get(error.status_code, ("bad_request", error.detail))
    return error_reply(request, error.status_code, code, message, error.headers)


async def _operators_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgelineError)
    LOG.error("request %s: %s [%s]", request.state.request_id, error, error.code)
    if error.code == "model_output_not_finite":
        return error_reply(request, 500, error.code, "the model gave no number for this image")
    message = "what is published here is not whole, so it is not given out until the operator has mended it"
    return error_reply(request, 503, error.code, message)


async def _too_much(request: Request, error: Exception) -> Response:
    assert isinstance(error, OverloadedError)
    return error_reply(request, 503, error.code, str(error), {"Retry-After": retry_after(error.retry_after_s)})


async def _not_ready(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotReadyError)
    return error_reply(request, 503, error.code, str(error), {"Retry-After": retry_after(RETRY_AFTER_S)})


async def _too_late(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeadlineError)
    return error_reply(request, 504 if error.started else 503, error.code, str(error), {"Retry-After": retry_after(1.0)})


def retry_after(seconds: float) -> str:
    """A Retry-After of at least so long, with a little chance in it, so that not everybody comes back at once."""
    return str(math.ceil(min(seconds, MOST_PATIENCE_S) + random.random() * 2))


async def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # never sent: the client has gone


HANDLERS: dict[type[Exception], ExceptionHandler] = {
    InputError: _callers_fault,
    OverloadedError: _too_much,
    NotReadyError: _not_ready,
    DeadlineError: _too_late,
    ArtifactError: _operators_fault,
    StoreError: _operators_fault,
    HTTPException: _no_route,
    ClientDisconnect: _nobody_listens,
}
"""For `Starlette(exception_handlers=)`."""


class Edge:
    """The outermost middleware: request ids, common headers, what is counted and logged, and the last resort for bugs."""

    def __init__(self, app: ASGIApp, ended: Callable[[Scope, int, float], None] | None = None) -> None:
        self.app = app
        self.ended = ended
        """Told of every answer: its scope, status and seconds."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        scope.setdefault("state", {})["request_id"] = request_id
        extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:  # the process edge: whatever arrives here is a bug of ours, and must not leave as a traceback
            if status:
                raise
            LOG.exception("request %s failed", request_id)
            reply = error_reply(Request(scope), 500, "internal_error", "edgeline failed on this request; its log says why")
            await reply(scope, receive, send_with_headers)
        finally:
            if self.ended is not None and status:  # without one the client had gone
                self.ended(scope, status, time.perf_counter() - begun)
