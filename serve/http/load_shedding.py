"""Turns away what a full engine could not answer, before anything else is done for it.

Under overload this is what a server does most, and every microsecond of it is taken from the answers it still gives. So it is a
few lines in front of the application: no routing, no body, one answer that is ready but for its request id.
"""

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from edgeline.serve.errors import OverloadedError
from edgeline.serve.http.app import Service
from edgeline.serve.http.responses import request_id_of, retry_after
from edgeline.serve.http.routes.predict import ENCODE

ROUTE = "/predict"


class LoadShedding:
    """An application in front of another: lets in what can be answered."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, or leave it to the application."""
        service = self.service
        # What cannot be answered within the longest time that may be asked for cannot be within a shorter one.
        if scope["path"] != ROUTE or scope["method"] != "POST" or not service.engine.full(service.terms.deadline_s):
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        service.engine.stats.rejected += 1
        headers, body = refusal(service, request_id_of(scope["headers"]))
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        service.metrics.ended(ROUTE, "POST", 503, time.perf_counter() - begun)


def refusal(service: Service, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of the 503 for a request that a full engine cannot take, or did not."""
    error = OverloadedError(retry_after_s=service.engine.wait_s())
    service.refused(error.code)
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
