"""Downloads from a store, for devices that poll often and lose their connection.

    GET /artifacts                            names, versions and channels
    GET /artifacts/{name}/{channel}           the manifest of a channel's version: poll this with If-None-Match
    GET /artifacts/{name}/{version}           that version's manifest
    GET /artifacts/{name}/{version}/{file}    a file that the manifest lists, or manifest.json

A version never changes, so its files may be cached forever; every entity tag is the SHA-256 of the content, which is also in
Repr-Digest. HEAD, If-None-Match, If-Match, If-Range and single ranges follow RFC 9110.
"""

import base64
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path, PurePosixPath

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.reader import is_version
from edgeline.serve.errors import DigestError, InputError
from edgeline.serve.http.conditional import byte_range, names_tag
from edgeline.serve.http.responses import error_reply
from edgeline.serve.http.routes.published_files import Address, OpenFile, Published

CHUNK_BYTES = 256 * 2**10
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
"""By suffix; everything else, such as a model, is application/octet-stream."""


class Downloads:
    """The routes of a store."""

    def __init__(self, store: Path) -> None:
        self.published = Published(store)

    def routes(self) -> list[Route]:
        """For `Starlette(routes=)`; each answers GET and HEAD."""
        return [
            Route("/artifacts", self.listing),
            Route("/artifacts/{name}/{version}", self.manifest),
            Route("/artifacts/{name}/{version}/{path:path}", self.file),
        ]

    async def listing(self, request: Request) -> Response:
        """List every artifact with its versions and channels."""
        reply = JSONResponse({"artifacts": await run_in_threadpool(self.published.listing)})
        tag = f'"{hashlib.sha256(reply.body).hexdigest()}"'
        reply.headers.update({"ETag": tag, "Cache-Control": REVALIDATE})
        if names_tag(request.headers.getlist("if-none-match"), tag, weakly=True):
            return Response(status_code=304, headers={"ETag": tag, "Cache-Control": REVALIDATE})
        return reply

    async def manifest(self, request: Request) -> Response:
        """Return the manifest of one version, or of a channel's."""
        name, given = request.path_params["name"], request.path_params["version"]
        version = given if is_version(given) else await run_in_threadpool(self.published.version, name, given)
        if version is None:
            raise _not_found()
        address = (name, version, FILE_NAME)
        caching = IMMUTABLE if version == given else REVALIDATE
        return await self._respond(
            request, address, {"Cache-Control": caching, "Content-Location": _location(request, address)}
        )

    async def file(self, request: Request) -> Response:
        """Return one file of one version."""
        params = request.path_params
        return await self._respond(request, (params["name"], params["version"], params["path"]), {"Cache-Control": IMMUTABLE})

    async def _respond(self, request: Request, address: Address, headers: Mapping[str, str]) -> Response:
        found = await self.published.open(address)
        if found is None:
            raise _not_found()
        opened, digest = found
        headers = {
            **headers,
            "Accept-Ranges": "bytes",
            "Content-Type": MEDIA_TYPES.get(PurePosixPath(address[2]).suffix, "application/octet-stream"),
            "ETag": f'"{digest}"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
        }
        with contextlib.ExitStack() as unless_sent:
            unless_sent.enter_context(opened.file)
            reply = _reply(request, opened, headers)
            if isinstance(reply, FileReply):
                unless_sent.pop_all()
            return reply


class FileReply(StreamingResponse):
    """Sends a part of an open file in chunks, and closes the file in any case."""

    def __init__(self, opened: OpenFile, part: tuple[int, int], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(opened, *part), status, headers)
        self.opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the end or the client disconnects."""
        with self.opened.file:
            await super().__call__(scope, receive, send)


def _reply(request: Request, opened: OpenFile, headers: dict[str, str]) -> Response:
    """Evaluate the conditions in the order of RFC 9110, section 13.2.2."""
    tag, size, given = headers["ETag"], opened.size, request.headers.getlist
    if given("if-match") and not names_tag(given("if-match"), tag, weakly=False):
        raise InputError("the file does not match If-Match", code="precondition_failed")
    if names_tag(given("if-none-match"), tag, weakly=True):
        return Response(status_code=304, headers={name: headers[name] for name in headers if name != "Content-Type"})
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size)})
    part = None
    if given("if-range") in ([], [tag]):
        try:
            part = byte_range(given("range"), size)
        except InputError as error:
            return error_reply(request, 416, error.code, str(error), {"Content-Range": f"bytes */{size}"})
    if part is None:
        return FileReply(opened, (0, size), 200, {**headers, "Content-Length": str(size)})
    first, length = part
    headers |= {"Content-Range": f"bytes {first}-{first + length - 1}/{size}", "Content-Length": str(length)}
    return FileReply(opened, part, 206, headers)


async def _chunks(opened: OpenFile, first: int, length: int) -> AsyncIterator[bytes]:
    end = first + length
    while first < end:
        chunk = await run_in_threadpool(os.pread, opened.file.fileno(), min(CHUNK_BYTES, end - first), first)
        first += len(chunk)
        if not chunk or (first == end and opened.changed()):
            # Ends the connection before the announced length, so that the client cannot mistake what it has for the file.
            raise DigestError("a file changed while it was being sent")
        yield chunk


def _location(request: Request, address: Address) -> str:
    return f"{request.scope.get('root_path', '')}/artifacts/{'/'.join(address)}"


def _not_found() -> InputError:
    return InputError(
        "no such artifact, version, channel or file is published; GET /artifacts lists those that are", code="not_found"
    )
