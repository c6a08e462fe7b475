"""The application behind the page of `edgeline label`.

    /TOKEN/                 the page
    /TOKEN/page.css /TOKEN/page.*.js
    /TOKEN/state            classes, undecided photos in their order, and how many are decided
    /TOKEN/photo/N          the bytes of a photo
    /TOKEN/decide           POST {"photo": N, "label": "wren"} or {"photo": N, "none": true}
    /TOKEN/undo             POST {"photo": N}

Every path starts with a secret that is made at each start, so no other web page, and no other user of the machine, can read
photos or decide: they cannot know an address. Photos are addressed by their number in a fixed list, never by a path.
"""

import asyncio
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from edgeline.serve.errors import DataError, InputError
from edgeline.serve.http.middleware import RequestMiddleware
from edgeline.serve.http.responses import HANDLERS, error_reply
from edgeline.serve.http.routes.page import HEADERS, MEDIA_TYPES
from edgeline.serve.inbox.decisions import Decisions, check_label
from edgeline.serve.labeling.photos import Photo, undecided

FOLDER = Path(__file__).parent / "static"
MAX_BODY_BYTES = 4096


class LabelingApp:
    """One labeling session: a fixed list of photos, and the decisions about them."""

    def __init__(self, photos: Sequence[Photo], classes: Sequence[str], decisions: Decisions) -> None:
        """Start a session.

        Args:
            photos: in the order in which they are shown.
            classes: the first ones get the digits as keys.
            decisions: where labels are written.
        """
        self._photos = photos
        self._decisions = decisions
        self.classes = list(classes)
        """Grows with the classes that people add."""
        self._deciding = asyncio.Lock()

    def routes(self) -> list[Route]:
        """For `Starlette(routes=)`."""
        return [
            *(_file_route(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES),
            Route("/state", self.state),
            Route("/photo/{number:int}", self.photo),
            Route("/decide", self.decide, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
        ]

    async def state(self, request: Request) -> Response:
        """What is to be decided; read from the files, so that other windows and processes count."""
        decided = await run_in_threadpool(self._decisions.read)
        self._add_classes(label for label in decided.values() if label is not None)
        left = {photo.name for photo in undecided(self._photos, decided)}
        photos = [
            {"number": number, "name": photo.name, "predictions": photo.predictions}
            for number, photo in enumerate(self._photos)
            if photo.name in left
        ]
        body = {
            "classes": self.classes,
            "photos": photos,
            "total": len(self._photos),
            "decided": len(self._photos) - len(photos),
            "labels": str(self._decisions.path),
        }
        return JSONResponse(body, headers=HEADERS | {"Cache-Control": "no-store"})

    async def photo(self, request: Request) -> Response:
        """The file of a photo."""
        photo = self._photo(request.path_params["number"])
        try:
            data = await run_in_threadpool(photo.path.read_bytes)
        except OSError as error:
            raise HTTPException(404, f"{photo.name} cannot be read: {error.strerror}") from error
        return Response(data, headers={**HEADERS, "Content-Type": photo.media_type, "Cache-Control": "private, max-age=3600"})

    async def decide(self, request: Request) -> Response:
        """Record a decision; it is on the disk when the reply is sent."""
        asked = await _body(request)
        photo = self._photo(asked.get("photo"))
        if asked.get("none") is True:
            await run_in_threadpool(self._decisions.none_of_these, photo.name)
            return JSONResponse({"label": None})
        if not isinstance(asked.get("label"), str):
            raise InputError("expected a label, or none: true")
        label = self._class_named(check_label(asked["label"]))
        async with self._deciding:
            await run_in_threadpool(self._decisions.label, photo.name, label)
        self._add_classes([label])
        return JSONResponse({"label": label, "classes": self.classes})

    async def undo(self, request: Request) -> Response:
        """Take a decision back."""
        photo = self._photo((await _body(request)).get("photo"))
        await run_in_threadpool(self._decisions.undo, photo.name)
        return JSONResponse({})

    def _photo(self, number: Any) -> Photo:
        if type(number) is not int or not 0 <= number < len(self._photos):
            raise InputError("there is no photo of that number", code="not_found")
        return self._photos[number]

    def _class_named(self, label: str) -> str:
        """A known class, or a new one.

        Raises:
            InputError: it differs from a class only in case, blanks or Unicode form, which would make two classes of one.
        """
        known = {_folded(name): name for name in self.classes}
        if (twin := known.get(_folded(label), label)) != label:
            raise InputError(f"{label!r} is written {twin!r} so far; use that name", code="label_invalid")
        return label

    def _add_classes(self, labels: Any) -> None:
        self.classes += [label for label in dict.fromkeys(labels) if label not in self.classes]


def create_app(session: LabelingApp, token: str) -> Starlette:
    """Build the application, with all of its routes below `/TOKEN`."""
    handlers = {**HANDLERS, InputError: _bad_request, DataError: _unwritable, HTTPException: _not_found}
    app = Starlette(
        routes=[Mount(f"/{token}", routes=session.routes())],
        middleware=[Middleware(RequestMiddleware)],
        exception_handlers=handlers,
    )
    app.router.redirect_slashes = False
    return app


def _folded(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


async def _body(request: Request) -> dict[str, Any]:
    received = b""
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise InputError(f"the body has more than {MAX_BODY_BYTES} bytes", code="body_too_large")
    try:
        asked = json.loads(received)
    except (ValueError, RecursionError) as error:
        raise InputError("the body is not JSON", code="json_invalid") from error
    if not isinstance(asked, dict):
        raise InputError("the body is not a JSON object", code="json_invalid")
    return asked


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    status = {"not_found": 404, "decided": 409, "gone": 410, "body_too_large": 413}.get(error.code, 400)
    return error_reply(request, status, error.code, str(error))


async def _unwritable(request: Request, error: Exception) -> Response:
    assert isinstance(error, DataError)
    return error_reply(request, 503, error.code, str(error))


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    message = error.detail if request.path_params else "no such page; open the address that `edgeline label` printed"
    return error_reply(request, error.status_code, code, message, error.headers)


def _file_route(path: Path) -> Route:
    body, headers = path.read_bytes(), {**HEADERS, "Content-Type": MEDIA_TYPES[path.suffix]}

    async def file(request: Request) -> Response:
        return Response(body, headers=headers)

    return Route("/" if path.name == "index.html" else f"/{path.name}", file)
