"""Describe the server as an OpenAPI 3.1 document: `GET /openapi.json`.

    routes.append(openapi_route(routes, limits, secured=tokens is not None))

The document is built once, from the routes themselves and from the constants that the code enforces. A route that is not
described here stops the server from starting, and a documented limit is always the real one.

OpenAPI cannot describe what holds for every URL: an unsupported method gets 405 with `Allow`, an unknown URL 404, and browsers'
preflight requests are answered if the server was started with `--cors`.
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
from edgeline.serve.http.open_inference.routes import MAX_BYTES, MAX_CONTROL_BYTES, UNSUPPORTED
from edgeline.serve.http.openapi.schemas import BINARY, CODES, SCHEMAS, V2_IMAGES, Schema, extensible, failed, listed, ref
from edgeline.serve.http.request_body import MAX_FILES
from edgeline.serve.http.routes.downloads import MEDIA_TYPES as DOWNLOAD_TYPES
from edgeline.serve.http.routes.page import FOLDER
from edgeline.serve.http.routes.page import MEDIA_TYPES as PAGE_TYPES
from edgeline.serve.image_files import FORMATS
from edgeline.serve.preprocess import Limits

PATH = "/openapi.json"
ANY_REQUEST = (400, 408, 414, 431, 500, 503)
"""Error statuses that any request can get: slow, malformed, over the connection limit, or a bug of the server."""
WITH_BODY = (413,)
NAME = r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$"
MODEL = r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?(\.pixels)?$"
NUMBER = r"^[1-9][0-9]{0,8}$"

COMMON_HEADERS: Schema = {
    "X-Request-Id": {"required": True, "schema": {"type": "string", "minLength": 1}},
    "X-Content-Type-Options": {"required": True, "schema": {"const": "nosniff"}},
}
ETAG: Schema = {"required": True, "schema": {"type": "string", "pattern": '^"[0-9a-f]{64}"$'}}
STATUS_HEADERS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    405: {"Allow": {"required": True, "schema": {"type": "string"}}},
    416: {"Content-Range": {"required": True, "schema": {"type": "string", "pattern": r"^bytes \*/[0-9]+$"}}},
    503: {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}}},
    504: {"Retry-After": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}},
}


def openapi_route(routes: Iterable[Route], limits: Limits, *, secured: bool) -> Route:
    """Return the route that serves the document, which describes itself and all other routes.

    Raises:
        KeyError: a route is not described here.
    """
    body: list[bytes] = []

    async def openapi(request: Request) -> Response:
        return Response(body[0], media_type="application/json", headers={"Cache-Control": "no-cache"})

    route = Route(PATH, openapi)
    body.append(json.dumps(document([*routes, route], limits, secured=secured), separators=(",", ":")).encode())
    return route


def document(routes: Iterable[Route], limits: Limits, *, secured: bool) -> dict[str, Any]:
    """Describe routes.

    Args:
        routes: all routes of the server.
        limits: limits of images.
        secured: whether requests need a token.

    Raises:
        KeyError: a route is not described here.
    """
    table = operations(limits)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        description = table[route.path]
        place = paths.setdefault(route.path.replace(":path}", "}"), {"parameters": _in_path(route)})
        for method in sorted(route.methods or ()):
            place[method.lower()] = _operation(route, method, description, secured=secured)
    components: dict[str, Any] = {"schemas": SCHEMAS, "responses": {f"Error{status}": _failure(status) for status in CODES}}
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    info = {
        "title": "edgeline",
        "version": version("edgeline"),
        "summary": "Image classifiers, the Open Inference Protocol V2, and downloads of verified artifacts",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    secure: Schema = {"security": [{"bearer": []}]} if secured else {}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components, **secure}


def operations(limits: Limits) -> dict[str, Schema]:
    """Return the description of each path: summary, errors beyond `ANY_REQUEST`, success replies, parameters and body."""
    of_image = (*WITH_BODY, 404, 415, 422, 504)
    plain = {
        "/healthz": ("Whether the process runs", "Alive"),
        "/readyz": ("Whether every model is served", "Ready"),
    }
    found: dict[str, Schema] = {path: {"summary": summary, "ok": _json(ref(name))} for path, (summary, name) in plain.items()}
    found["/predict"] = {
        "summary": "Classify an image, or each file of a multipart form",
        "errors": of_image,
        "ok": _json({"oneOf": [ref("Prediction"), ref("Predictions")]})
        | {"headers": {"Server-Timing": {"schema": {"type": "string"}, "description": "of one image: queue, decode, infer"}}},
        "parameters": [
            _parameter("top_k", "query", {**COUNT, "default": 5}, description="number of classes to return"),
            _parameter(
                "explain",
                "query",
                {"const": METHOD},
                description="add a class activation map for each class, if the artifact has them",
            ),
            _parameter("model", "query", {"type": "string"}, description="name of a served artifact; by default the first"),
            TIMEOUT,
        ],
        "body": _image_body(limits),
    }
    found["/metrics"] = {"summary": "Metrics for Prometheus", "ok": _content(CONTENT_TYPE_LATEST)}
    found["/drift"] = {
        "summary": "Drift statistics of a model, as `edgeline drift` reads them",
        "errors": (404,),
        "ok": _json({"type": "object", "required": ["schema", "model", "version", "count", "statistics", "predicted"]}),
        "parameters": [
            _parameter("model", "query", {"type": "string"}, description="name of a served artifact; by default the first")
        ],
    }
    found[PATH] = {"summary": "This document", "ok": _json({"type": "object", "required": ["openapi", "paths"]})}
    found["/model"] = {
        "summary": "The model as the web page shows it",
        "ok": _json(ref("Model")),
        "cached": True,
    }
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in PAGE_TYPES:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = {"summary": "A file of the web page", "ok": _content(PAGE_TYPES[file.suffix]), "cached": True}
    return found | _downloads() | _v2()


COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 10**9 - 1}
TIMEOUT: Schema = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "deadline of the request, in milliseconds from now",
    "schema": COUNT,
}


def _downloads() -> dict[str, Schema]:
    types = sorted({"application/octet-stream", *DOWNLOAD_TYPES.values()})
    parts = [_header(name) for name in ("Range", "If-Range", "If-Match")]
    listing = {"summary": "List the artifacts, their versions and channels", "ok": _json(ref("Artifacts")), "cached": True}
    manifest = {"ok": _json(ref("Manifest")), "errors": (404, 412, 416), "parameters": parts, "cached": True, "partial": True}
    file: Schema = {"ok": {"content": {kind: {} for kind in types}}}
    return {
        "/artifacts": listing,
        "/artifacts/{name}/{version}": {**manifest, "summary": "The manifest of a version, or of a channel's"},
        "/artifacts/{name}/{version}/{path:path}": {**manifest, **file, "summary": "A file of a version"},
    }


def _v2() -> dict[str, Schema]:
    unready = {"/v2/health/ready": "V2Unready", "/ready": "V2ModelUnready"}
    found: dict[str, Schema] = {
        "/v2/health/live": {"summary": "Liveness: whether the process runs", "ok": _json(ref("V2Live"))},
        "/v2/health/ready": {
            "summary": "Readiness: whether every model is served",
            "ok": _json(ref("V2Ready")),
            "unready": unready["/v2/health/ready"],
        },
        "/v2/models/stats": {"summary": "Statistics of every model", "ok": _json(ref("V2Statistics"))},
        "/v2/repository/index": {
            "summary": "List every model and version, and whether it is ready",
            "ok": _json(ref("Index")),
            "errors": WITH_BODY,
            "body": {
                "content": {"application/json": {"schema": ref("V2IndexRequest")}},
                "description": f"at most {MAX_CONTROL_BYTES:,} bytes",
            },
        },
    }
    for path in ("/v2", "/v2/"):
        found[path] = {"summary": "Server metadata: name, version and extensions", "ok": _json(ref("V2Server"))}
    for call in ("load", "unload"):
        found[f"/v2/repository/models/{{model}}/{call}"] = {"summary": "Not available over HTTP", "errors": (403,)}
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        for end, summary, name in (
            ("", "Metadata of a model", "V2Model"),
            ("/ready", "Readiness of a model", "V2ModelReady"),
            ("/config", "Configuration of a model", "V2Config"),
            ("/stats", "Statistics of a model", "V2Statistics"),
        ):
            found[prefix + end] = {"summary": summary, "ok": _json(ref(name)), "errors": (404,), "unready": unready.get(end)}
        found[f"{prefix}/infer"] = _infer()
    return found | {path: {"summary": "An extension that is not supported", "errors": (501,)} for path in UNSUPPORTED}


def _infer() -> Schema:
    framing = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "length of the JSON before raw tensors, in bytes; 0 if the body is the only input",
        "schema": {"type": "integer", "minimum": 0},
    }
    replies = {"application/json": {"schema": ref("V2InferReply")}, "application/octet-stream": {"schema": BINARY}}
    head = {
        "description": "bytes of the JSON, if raw tensors follow it",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    }
    return {
        "summary": f"Classify {V2_IMAGES}",
        "errors": (*WITH_BODY, 404, 415, 422, 504),
        "ok": {"content": replies, "headers": {"Inference-Header-Content-Length": head}},
        "parameters": [TIMEOUT, framing],
        "body": {
            "required": True,
            "description": f"at most {MAX_BYTES:,} bytes, {MAX_JSON_BYTES:,} of them JSON; Content-Type is ignored. With "
            "Inference-Header-Content-Length the JSON is followed by raw little-endian tensors (binary_data_size), each BYTES "
            "element preceded by its length in 4 bytes. May be compressed with gzip or deflate.",
            "content": {
                "application/json": {"schema": ref("V2InferRequest")},
                "application/octet-stream": {"schema": BINARY},
            },
        },
    }


def _image_body(limits: Limits) -> Schema:
    kinds = [f"image/{kind.lower()}" for kind in FORMATS]
    files = extensible({"file": listed(BINARY, minItems=1, maxItems=MAX_FILES)})
    raw = {kind: {"schema": BINARY} for kind in (*kinds, "application/octet-stream")}
    return {
        "required": True,
        "description": f"an image of at most {limits.max_bytes:,} bytes and {limits.max_pixels:,} pixels, or a form of such "
        "files, which may have any names; fields that are not files are ignored, parameters are in the query. The bytes decide "
        "whether it is an image: any other Content-Type, or none, is accepted too, except application/json, which is 415",
        "content": {**raw, "multipart/form-data": {"schema": files}},
    }


def _operation(route: Route, method: str, description: Schema, *, secured: bool) -> Schema:
    guarded = secured and route.path not in OPEN
    statuses = {*ANY_REQUEST, *description.get("errors", ()), *((401,) if guarded else ())}
    if "{" in route.path:
        statuses |= {404, 405}  # a name with an escaped slash is another URL
    responses: dict[str, Schema] = {
        str(status): {"$ref": f"#/components/responses/Error{status}"} for status in sorted(statuses)
    }
    cached = {"ETag": ETAG} if description.get("cached") else {}
    if "ok" in description:
        good = description["ok"]
        headers = {**COMMON_HEADERS, **cached, **good.get("headers", {})}
        responses["200"] = {"description": description["summary"], "headers": headers, "content": good["content"]}
        if description.get("partial"):
            place = {
                "Content-Range": {"required": True, "schema": {"type": "string", "pattern": "^bytes [0-9]+-[0-9]+/[0-9]+$"}}
            }
            content: Schema = {kind: {} for kind in good["content"]}  # part of a JSON document is not valid JSON
            responses["206"] = {"description": "the requested range", "headers": headers | place, "content": content}
        if cached:
            responses["304"] = {"description": "not modified", "headers": {**COMMON_HEADERS, **cached}}
    if description.get("unready"):
        either = {"anyOf": [ref(description["unready"]), failed(CODES[503])]}
        responses["503"] = {**_failure(503), "content": {"application/json": {"schema": either}}}
    found: Schema = {"operationId": f"{method.lower()} {route.path}", "summary": description["summary"], "responses": responses}
    if method == "HEAD":
        found["responses"] = {status: _without_content(response) for status, response in responses.items()}
    elif "body" in description:
        found["requestBody"] = description["body"]
    parameters = [*description.get("parameters", ()), *([_header("If-None-Match")] if cached else [])]
    return found | ({"parameters": parameters} if parameters else {}) | ({"security": []} if secured and not guarded else {})


def _without_content(response: Schema) -> Schema:
    return {name: value for name, value in response.items() if name != "content"}


def _in_path(route: Route) -> list[Schema]:
    patterns = {"name": NAME, "model": MODEL, "version": NUMBER}
    return [
        _parameter(name, "path", {"type": "string", "pattern": patterns.get(name, "^.+$")}) | {"required": True}
        for name in route.param_convertors
    ]


def _failure(status: int) -> Schema:
    headers = {**COMMON_HEADERS, **STATUS_HEADERS.get(status, {})}
    return _json(failed(CODES[status])) | {"description": HTTPStatus(status).phrase, "headers": headers}


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _content(media_type: str) -> Schema:
    return {"content": {media_type: {"schema": {"type": "string"}}}}


def _header(name: str) -> Schema:
    return _parameter(name, "header", {"type": "string"})


def _parameter(name: str, place: str, schema: Schema, **more: Any) -> Schema:
    return {"name": name, "in": place, "schema": schema, **more}
