"""Authentication: bearer tokens from a file, and the middleware that checks requests against them.

The file has one token per line, so an old and a new one can be valid while clients switch; blank lines and lines that begin
with # are ignored. It is read again when it changes. Tokens are compared by their SHA-256, always all of them, so that the
time it takes reveals nothing about them.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeline.serve.errors import ConfigError
from edgeline.serve.http.responses import error_reply
from edgeline.serve.http.routes.page import PATHS

LOG = logging.getLogger(__name__)

OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}) | PATHS
"""Paths without authentication: health checks, and the page, which prompts for a token."""
MIN_CHARACTERS = 16
MAX_BYTES = 64 * 2**10


class Tokens:
    """The tokens of a file, as it is now; read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._digests: list[bytes] = []
        self._digests = self._read()

    def accept(self, credentials: list[bytes]) -> bool:
        """Whether a request has exactly one Authorization header, and it carries a valid token."""
        self._refresh()
        if len(credentials) != 1:
            return False
        scheme, _, token = credentials[0].partition(b" ")
        given = hashlib.sha256(token).digest()
        # No early exit: every token is compared, whichever it is.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(matches)

    def _refresh(self) -> None:
        try:
            stamp = _stamp(self.path)
        except OSError:
            return  # it is being replaced, or was removed: the valid tokens stay valid
        if stamp != self._stamp:
            try:
                self._digests = self._read()
            except ConfigError as error:
                self._stamp = stamp
                LOG.error("the tokens are unchanged: %s", error)
            else:
                LOG.info("reloaded %d tokens", len(self._digests))

    def _read(self) -> list[bytes]:
        try:
            stamp = _stamp(self.path)
            if stamp[1] > MAX_BYTES:
                raise ConfigError(f"{self.path} has {stamp[1]:,} bytes, the limit of a token file is {MAX_BYTES:,}")
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"the token file {self.path} cannot be read: {error.strerror}") from error
        tokens = [token for line in lines if (token := line.strip()) and not token.startswith(b"#")]
        if not tokens:
            raise ConfigError(f"the token file {self.path} has no tokens; write one per line, or serve without --tokens")
        if short := sum(len(token) < MIN_CHARACTERS or not token.isascii() for token in tokens):
            raise ConfigError(
                f"{short} of the tokens in {self.path} are shorter than {MIN_CHARACTERS} characters or not ASCII; "
                "make them with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        self._stamp = stamp
        return [hashlib.sha256(token).digest() for token in tokens]


class TokenMiddleware:
    """Answers 401 to requests without a valid token."""

    def __init__(self, app: ASGIApp, tokens: Tokens, public: Iterable[str] = OPEN) -> None:
        self.app = app
        self.tokens = tokens
        self.public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in self.public:
            await self.app(scope, receive, send)
            return
        if self.tokens.accept([value for name, value in scope["headers"] if name == b"authorization"]):
            await self.app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": 'Bearer realm="edgeline"'}
        message = "this server requires a token; send one as Authorization: Bearer TOKEN"
        await error_reply(Request(scope), 401, "unauthorized", message, headers)(scope, receive, send)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino
