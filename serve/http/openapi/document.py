"""What the server offers, as an OpenAPI 3.1 document: `GET /openapi.json`.

    routes.append(openapi_route(routes, limits, secured=tokens is not None))

Built once from the routes themselves and from the constants of the code that keeps them, so a route that is not told of here
stops the server from starting, and a limit is told as it is.

What only HTTP knows has no place in such a document: a method that an address does not take is 405 with `Allow`, an address
that is none 404, and browsers' preflights are answered where the server was started with `--cors`.
"""

import json
from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeline.serve.explain import METHOD
from edgeline.serve.http.auth import OPEN
from edgeline.serve.http.open_inference.decode import MAX_JSON_BYTES
from edgeline.serve.http.open_inference.routes import MAX_BYTES, MAX_CONTROL_BYTES, NOT_OFFERED
from edgeline.serve.http.openapi.schemas import BINARY, CODES, SCHEMAS, V2_IMAGES, Schema, closed, failed, listed, ref
from edgeline.serve.http.request_body import MAX_FILES
from edgeline.serve.http.routes.downloads import MEDIA_TYPES as DOWNLOAD_TYPES
from edgeline.serve.http.routes.page import FOLDER
from edgeline.serve.http.routes.page import MEDIA_TYPES as PAGE_TYPES
from edgeline.serve.preprocess import FORMATS, Limits

PATH = "/openapi.json"
ANYWHERE = (400, 408, 414, 431, 500, 503)
"""Statuses of a connection that is slow, malformed, one too many, or meets a bug of ours, whatever it asks for."""
WITH_BODY = (413,)
NAME = r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$"
MODEL = r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?(\.pixels)?$"
NUMBER = r"^[1-9][0-9]{0,8}$"

COMMON_HEADERS: Schema = {
    "X-Request-Id": {"required": True, "schema": {"type": "string", "minLength": 1}},
    "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
}
ETAG: Schema = {"required": True, "schema": {"type": "string", "pattern": '^"[0-9a-f]{64}"$'}}
OF_STATUS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    405: {"Allow": {"required": True, "schema": {"type": "string"}}},
    416: {"Content-Range": {"required": True, "schema": {"type": "string", "pattern": r"^bytes \*/[0-9]+$"}}},
    503: {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}},
    504: {"Retry-After": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}},
}


def openapi_route(routes: Iterable[Route], limits: Limits, *, secured: bool) -> Route:
    """The route that gives the document about itself and all others.

    Raises:
        KeyError: a route is not told of here.
    """
    held: list[bytes] = []

    async def openapi(request: Request) -> Response:
        return Response(held[0], media_type="application/json", headers={"Cache-Control": "no-cache"})

    route = Route(PATH, openapi)
    held.append(json.dumps(document([*routes, route], limits, secured=secured), separators=(",", ":")).encode())
    return route


def document(routes: Iterable[Route], limits: Limits, *, secured: bool) -> dict[str, Any]:
    """Describe routes.

    Args:
        routes: all of them, each with a path that is told of here.
        limits: of images.
        secured: whether every request needs a token.

    Raises:
        KeyError: a route is not told of here.
    """
    table = operations(limits)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        told = table[route.path]
        place = paths.setdefault(route.path.replace(":path}", "}"), {"parameters": _in_path(route)})
        for method in sorted(route.methods or ()):
            place[method.lower()] = _operation(route, method, told, secured=secured)
    components: dict[str, Any] = {"schemas": SCHEMAS, "responses": {f"Error{status}": _failure(status) for status in CODES}}
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    info = {
        "title": "edgeline",
        "version": version("edgeline"),
        "summary": "Image classifiers, the Open Inference Protocol V2, and downloads of proven artifacts",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    secure: Schema = {"security": [{"bearer": []}]} if secured else {}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components, **secure}


def operations(limits: Limits) -> dict[str, Schema]:
    """By path: a summary, the statuses of errors beside those that may come anywhere, the good replies, and what is sent."""
    of_image = (*WITH_BODY, 404, 415, 422, 504)
    plain = {"/healthz": ("Whether the process lives", "Alive"), "/readyz": ("Whether predictions are answered", "Ready")}
    found: dict[str, Schema] = {path: {"summary": says, "ok": _json(ref(name))} for path, (says, name) in plain.items()}
    found["/predict"] = {
        "summary": "Classify an image, or each file of a form",
        "errors": of_image,
        "ok": _json({"oneOf": [ref("Prediction"), ref("Predictions")]})
        | {"headers": {"Server-Timing": {"schema": {"type": "string"}, "description": "of one image: queue, decode, infer"}}},
        "parameters": [
            _parameter("top_k", "query", {**COUNT, "default": 5}, description="how many classes to name"),
            _parameter(
                "explain", "query", {"const": METHOD}, description="where each class was seen; of artifacts that can say"
            ),
            _parameter("model", "query", {"type": "string"}, description="an artifact's name; without it the first"),
            TIMEOUT,
        ],
        "body": _image_body(limits),
    }
    found["/metrics"] = {"summary": "What Prometheus reads", "ok": _content(CONTENT_TYPE_LATEST)}
    found["/drift"] = {
        "summary": "What a model has met, as `edgeline drift` reads it",
        "errors": (404,),
        "ok": _json({"type": "object", "required": ["schema", "model", "version", "count", "statistics", "predicted"]}),
        "parameters": [
            _parameter("model", "query", {"type": "string"}, description="an artifact's name; without it the first")
        ],
    }
    found[PATH] = {"summary": "This document", "ok": _json({"type": "object", "required": ["openapi", "paths"]})}
    found["/model"] = {"summary": "What the page shows of the model", "ok": _json(ref("Model")), "cached": True}
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in PAGE_TYPES:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = {"summary": "A file of the web page", "ok": _content(PAGE_TYPES[file.suffix]), "cached": True}
    return found | _downloads() | _v2()


COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 10**9 - 1}
TIMEOUT: Schema = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "milliseconds after which nobody wants the answer",
    "schema": COUNT,
}


def _downloads() -> dict[str, Schema]:
    types = sorted({"application/octet-stream", *DOWNLOAD_TYPES.values()})
    parts = [_header(name) for name in ("Range", "If-Range", "If-Match")]
    listing = {"summary": "Artifacts and their versions", "ok": _json(ref("Artifacts")), "cached": True}
    manifest = {"ok": _json(ref("Manifest")), "errors": (404, 412, 416), "parameters": parts, "cached": True, "partial": True}
    file: Schema = {"ok": {"content": {kind: {} for kind in types}}}
    return {
        "/artifacts": listing,
        "/artifacts/{name}/latest": {**manifest, "summary": "The newest version's manifest"},
        "/artifacts/{name}/{version}": {**manifest, "summary": "A version's manifest"},
        "/artifacts/{name}/{version}/{path:path}": {**manifest, **file, "summary": "A file that a version's manifest names"},
    }


def _v2() -> dict[str, Schema]:
    unready = {"/v2/health/ready": "V2Unready", "/ready": "V2ModelUnready"}
    found: dict[str, Schema] = {
        "/v2/health/live": {"summary": "Whether the process lives", "ok": _json(ref("V2Live"))},
        "/v2/health/ready": {
            "summary": "Whether every model answers",
            "ok": _json(ref("V2Ready")),
            "unready": unready["/v2/health/ready"],
        },
        "/v2/models/stats": {"summary": "Counters of every model", "ok": _json(ref("V2Statistics"))},
        "/v2/repository/index": {
            "summary": "Every model and version, and whether it answers",
            "ok": _json(ref("Index")),
            "errors": WITH_BODY,
            "body": {
                "content": {"application/json": {"schema": ref("V2IndexRequest")}},
                "description": f"at most {MAX_CONTROL_BYTES:,} bytes",
            },
        },
    }
    for path in ("/v2", "/v2/"):
        found[path] = {"summary": "Name, version and extensions", "ok": _json(ref("V2Server"))}
    for call in ("load", "unload"):
        found[f"/v2/repository/models/{{model}}/{call}"] = {"summary": "Not offered over this port", "errors": (403,)}
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        for end, says, name in (
            ("", "Describe a model", "V2Model"),
            ("/ready", "Whether a model answers", "V2ModelReady"),
            ("/config", "A model's configuration", "V2Config"),
            ("/stats", "A model's counters", "V2Statistics"),
        ):
            found[prefix + end] = {"summary": says, "ok": _json(ref(name)), "errors": (404,), "unready": unready.get(end)}
        found[f"{prefix}/infer"] = _infer()
    return found | {path: {"summary": "An extension that is not offered", "errors": (501,)} for path in NOT_OFFERED}


def _infer() -> Schema:
    framing = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "bytes of the JSON in front of raw tensors; 0 where the body is the one input",
        "schema": {"type": "integer", "minimum": 0},
    }
    replies = {"application/json": {"schema": ref("V2InferReply")}, "application/octet-stream": {"schema": BINARY}}
    head = {"description": "where raw tensors follow the JSON: its bytes", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    return {
        "summary": f"Answer {V2_IMAGES}",
        "errors": (*WITH_BODY, 404, 415, 422, 504),
        "ok": {"content": replies, "headers": {"Inference-Header-Content-Length": head}},
        "parameters": [TIMEOUT, framing],
        "body": {
            "required": True,
            "description": f"at most {MAX_BYTES:,} bytes, {MAX_JSON_BYTES:,} of them JSON; Content-Type is not looked at. With "
            "Inference-Header-Content-Length the JSON is followed by raw little-endian tensors (binary_data_size), BYTES each "
            "behind its length of 4 bytes. May be packed with gzip or deflate.",
            "content": {
                "application/json": {"schema": ref("V2InferRequest")},
                "application/octet-stream": {"schema": BINARY},
            },
        },
    }


def _image_body(limits: Limits) -> Schema:
    kinds = [f"image/{kind.lower()}" for kind in FORMATS]
    files = closed({"file": listed(BINARY, minItems=1, maxItems=MAX_FILES)})
    raw = {kind: {"schema": BINARY} for kind in (*kinds, "application/octet-stream")}
    return {
        "required": True,
        "description": f"an image of at most {limits.max_bytes:,} bytes and {limits.max_pixels:,} pixels, or a form of such "
        "files; every part must have a filename, and may have any name. The bytes decide whether it is an image: any other "
        "Content-Type, or none, is accepted too, except application/json, which is 415",
        "content": {**raw, "multipart/form-data": {"schema": files}},
    }


def _operation(route: Route, method: str, told: Schema, *, secured: bool) -> Schema:
    guarded = secured and route.path not in OPEN
    statuses = {*ANYWHERE, *told.get("errors", ()), *((401,) if guarded else ())}
    if "{" in route.path:
        statuses |= {404, 405}  # an escaped slash in a name makes another address of it
    responses: dict[str, Schema] = {
        str(status): {"$ref": f"#/components/responses/Error{status}"} for status in sorted(statuses)
    }
    cached = {"ETag": ETAG} if told.get("cached") else {}
    if "ok" in told:
        good = told["ok"]
        headers = {**COMMON_HEADERS, **cached, **good.get("headers", {})}
        responses["200"] = {"description": told["summary"], "headers": headers, "content": good["content"]}
        if told.get("partial"):
            place = {
                "Content-Range": {"required": True, "schema": {"type": "string", "pattern": "^bytes [0-9]+-[0-9]+/[0-9]+$"}}
            }
            content: Schema = {kind: {} for kind in good["content"]}  # a part of JSON is none, all of it is
            responses["206"] = {"description": "the part that Range names", "headers": headers | place, "content": content}
        if cached:
            responses["304"] = {"description": "what If-None-Match names", "headers": {**COMMON_HEADERS, **cached}}
    if told.get("unready"):
        either = {"anyOf": [ref(told["unready"]), failed(CODES[503])]}
        responses["503"] = {**_failure(503), "content": {"application/json": {"schema": either}}}
    found: Schema = {"operationId": f"{method.lower()} {route.path}", "summary": told["summary"], "responses": responses}
    if method == "HEAD":
        found["responses"] = {status: _headless(held) for status, held in responses.items()}
    elif "body" in told:
        found["requestBody"] = told["body"]
    parameters = [*told.get("parameters", ()), *([_header("If-None-Match")] if cached else [])]
    return found | ({"parameters": parameters} if parameters else {}) | ({"security": []} if secured and not guarded else {})


def _headless(response: Schema) -> Schema:
    return {name: held for name, held in response.items() if name != "content"}


def _in_path(route: Route) -> list[Schema]:
    patterns = {"name": NAME, "model": MODEL, "version": NUMBER}
    return [
        _parameter(name, "path", {"type": "string", "pattern": patterns.get(name, "^.+$")}) | {"required": True}
        for name in route.param_convertors
    ]


def _failure(status: int) -> Schema:
    headers = {**COMMON_HEADERS, **OF_STATUS.get(status, {})}
    return _json(failed(CODES[status])) | {"description": HTTPStatus(status).phrase, "headers": headers}


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _content(media_type: str) -> Schema:
    return {"content": {media_type: {"schema": {"type": "string"}}}}


def _header(name: str) -> Schema:
    return _parameter(name, "header", {"type": "string"})


def _parameter(name: str, place: str, schema: Schema, **more: Any) -> Schema:
    return {"name": name, "in": place, "schema": schema, **more}
