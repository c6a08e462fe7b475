"""Load shedding: reject what a full engine could not answer in time, before any other work is done for it.

Under overload this is what a server does most, and it costs time that the accepted requests need. So it is a few lines in front
of the application: no routing, no body, one response that is complete except for its request id.
"""

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from edgeline.serve.errors import OverloadedError
from edgeline.serve.http.middleware import request_id_of
from edgeline.serve.http.responses import retry_after
from edgeline.serve.http.routes.predict import ENCODE, METHODS, PATH
from edgeline.serve.http.service import Service


class LoadShedding:
    """Middleware that answers 503 while the engine is full."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, or pass the request to the application."""
        service = self.service
        # What would miss the longest possible deadline would miss a shorter one too.
        is_prediction = scope["path"] == PATH and scope["method"] in METHODS
        if not is_prediction or not service.engine.full(service.limits.deadline_s):
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        service.engine.stats.rejected += 1
        headers, body = overloaded(service, request_id_of(scope["headers"]))
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        service.metrics.ended(PATH, scope["method"], 503, time.perf_counter() - begun)


def overloaded(service: Service, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the 503 for a request that a full engine did not accept; counts it by its code."""
    error = OverloadedError(retry_after_s=service.engine.wait_s())
    service.count_rejected(error.code)
    body = ENCODE({"error": str(error), "code": error.code, "request_id": request_id}).encode()
    headers = [
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"retry-after", retry_after(error.retry_after_s).encode()),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    return headers, body
