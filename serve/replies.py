"""What every HTTP answer has in common: one shape of errors, a request id, and no body left behind.

    {"error": "<one line>", "code": "<stable slug>", "request_id": "..."}

Who is at fault decides the status: callers get 4xx with the error's own words. The operator's faults (artifact, store) are
503 and ours are 500, both in general words, because their details hold paths; the log has them under the request id.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from serve.errors import ArtifactError, DeadlineError, EdgelineError, ImageError, InputError, NotReadyError, StoreError

LOG = logging.getLogger(__name__)

STATUS = {
    "body_too_large": 413,
    "content_encoding_not_supported": 415,
    "image_empty": 400,
    "image_too_large": 413,
    "management_not_offered": 403,
    "media_type_not_supported": 415,
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

RETRY_AFTER_S = 2
"""What a client that came before the model was ready is told to wait; loading takes a second or two."""
REQUEST_ID = re.compile(r"[!-~]{1,128}")
LINGER_S = 2.0
"""How long a client may go on sending a body that was answered unread."""


def status_of(error: InputError) -> int:
    """The status of a caller's fault; always 4xx."""
    return STATUS.get(error.code, 422 if isinstance(error, ImageError) else 400)


def error_reply(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer in the one shape that errors have."""
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


async def _not_ready(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotReadyError)
    return error_reply(request, 503, error.code, str(error), {"Retry-After": str(RETRY_AFTER_S)})


async def _too_late(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeadlineError)
    return error_reply(request, 504, error.code, str(error))


async def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # never sent: the client has gone


HANDLERS: dict[type[Exception], ExceptionHandler] = {
    InputError: _callers_fault,
    NotReadyError: _not_ready,
    DeadlineError: _too_late,
    ArtifactError: _operators_fault,
    StoreError: _operators_fault,
    HTTPException: _no_route,
    ClientDisconnect: _nobody_listens,
}
"""For `Starlette(exception_handlers=)`."""


class Edge:
    """The outermost middleware: request ids, common headers, the last resort for bugs, and a polite end of early answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:  # the process edge: whatever arrives here is a bug of ours, and must not leave as a traceback
            if exchange.started:
                raise
            LOG.exception("request %s failed", exchange.request_id)
            reply = error_reply(Request(scope), 500, "internal_error", "edgeline failed on this request; its log says why")
            await reply(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        self.request_id = wanted if REQUEST_ID.fullmatch(wanted) else secrets.token_hex(8)
        self.started = False
        self._body_left = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._receive, self._send = receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_left = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            if self._body_left:
                headers["Connection"] = "close"
        elif self._body_left and not message.get("more_body", False):
            # Closing while a client still sends resets the connection, and may destroy the answer before it was read. So the
            # answer goes out whole, then what still comes is thrown away for a moment, then the connection closes.
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while self._body_left:
                    await self.receive()
        except TimeoutError:
            self._body_left = False
