"""The outermost middleware: request ids, common headers, accounting, and the last resort for bugs."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeline.serve.http.responses import error_reply

LOG = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[!-~]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id in a request's `X-Request-Id`, or a new one if there is none or it is not safe to echo."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"").decode("latin-1")
    # Not from `secrets`: an id is not a secret, and a system call would yield to the workers at every request.
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


class RequestMiddleware:
    """Adds the request id and `nosniff` to every response, and turns an unexpected exception into a 500."""

    def __init__(self, app: ASGIApp, ended: Callable[[Scope, int, float], None] | None = None) -> None:
        """Wrap an application.

        Args:
            app: answers the requests.
            ended: called after every response with its scope, status and duration in seconds.
        """
        self.app = app
        self.ended = ended

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
        except Exception:  # the edge of the process: this is a bug, and no traceback may reach the client
            if status:
                raise
            LOG.exception("request %s failed", request_id)
            reply = error_reply(Request(scope), 500, "internal_error", "internal error; the server's log has the details")
            await reply(scope, receive, send_with_headers)
        finally:
            if self.ended is not None and status:  # no status: the client has disconnected
                self.ended(scope, status, time.perf_counter() - begun)
