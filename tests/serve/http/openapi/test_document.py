"""The OpenAPI document matches the routes, the error codes and real replies, also to generated requests."""

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from starlette.routing import Route

import edgeline.serve as serve
from edgeline.serve import errors
from edgeline.serve.errors import EdgelineError, InputError
from edgeline.serve.http.app import AppOptions, create_app
from edgeline.serve.http.auth import Tokens
from edgeline.serve.http.openapi.document import document, openapi_route
from edgeline.serve.http.openapi.schemas import CODES
from edgeline.serve.http.responses import ROUTING, STATUS, status_of
from edgeline.serve.http.routes.health import HealthRoutes
from edgeline.serve.http.routes.page import PATHS
from edgeline.serve.http.routes.predict import DEFAULT_TOP_K
from edgeline.serve.preprocess import Limits

load_all_checks()
NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
CHECKED = CHECKS.get_by_names(NAMES)
REJECTED = CHECKS.get_by_names(["negative_data_rejection"])


@pytest.fixture(name="openapi", scope="module")
def the_document(site: Any) -> dict[str, Any]:
    return dict(site.client.get("/openapi.json").json())


# --- the document and the code ---


def routes_of(site: Any) -> list[Route]:
    app = create_app(site.service, AppOptions(store=Path("store")))
    return [route for route in app.routes if isinstance(route, Route)]


def test_it_describes_exactly_the_routes_and_methods_of_the_server(site: Any, openapi: dict[str, Any]) -> None:
    described = {(path, method.upper()) for path, place in openapi["paths"].items() for method in place.keys() - {"parameters"}}
    there = {(re.sub(r":\w+}", "}", route.path), method) for route in routes_of(site) for method in route.methods or ()}
    assert described == there


def test_a_route_without_a_description_stops_the_server(site: Any) -> None:
    with pytest.raises(KeyError, match="/new"):
        openapi_route([Route("/new", HealthRoutes(site.service).healthz)], Limits(), secured=False)


def test_metrics_are_described_only_if_they_are_served(site: Any) -> None:
    app = create_app(site.service, AppOptions(metrics=False))
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert "/metrics" not in document(routes, Limits(), secured=False)["paths"]


def test_documented_limits_are_the_real_ones(site: Any) -> None:
    described = document(routes_of(site), Limits(max_bytes=1_234_567, max_pixels=7_654_321), secured=False)
    text = described["paths"]["/predict"]["post"]["requestBody"]["description"]
    [default] = [each["schema"]["default"] for each in described["paths"]["/predict"]["post"]["parameters"][:1]]
    assert default == DEFAULT_TOP_K
    assert "1,234,567 bytes" in text
    assert "7,654,321 pixels" in text


def test_every_schema_is_valid(openapi: dict[str, Any]) -> None:
    for name in openapi["components"]["schemas"]:
        validator(openapi, {"$ref": f"#/components/schemas/{name}"})


def sources() -> Iterator[ast.AST]:
    """Yield every syntax node of the server's modules."""
    folder = Path(serve.__path__[0])
    for path in folder.rglob("*.py"):
        subpackage = path.relative_to(folder).parts[0]
        if (
            subpackage not in {"cli", "conformance", "drift", "inbox", "inputs", "labeling", "hot_reload.py"}
            and path.name != "schemas.py"
        ):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


AT = {"error_reply": 2, "Rejection": 1, "_reject": 1, "bad": 1}
"""Functions with an error code among their positional parameters, and its index."""
COMMAND_CODES = {"address_unusable", "config_invalid", "disk_full", "io_error"}
"""Codes of commands, before a server runs."""


def codes_in_the_code() -> set[str]:
    found = {*STATUS, *(code for code, _ in ROUTING.values())}
    for node in sources():
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            codes += node.args[AT[name] : AT[name] + 1] if name in AT else []
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, EdgelineError) and kind is not EdgelineError:
                found.add(kind.code)
        else:
            continue
        found |= {code.value for code in codes if isinstance(code, ast.Constant)}
    return found - COMMAND_CODES


def test_every_code_that_is_raised_is_documented() -> None:
    documented = {code for codes in CODES.values() for code in codes}
    found = codes_in_the_code()
    assert {"tensor_invalid", "uri_too_long", "too_many_connections", "stopping", "image_empty", "candidate_crashed"} <= found
    assert found - documented == set()


def test_every_documented_code_is_in_the_source() -> None:
    strings = {node.value for node in sources() if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {code for codes in CODES.values() for code in codes} - strings == set()


def test_the_code_of_a_client_error_is_documented_under_its_status() -> None:
    kinds = {kind.__name__: kind for kind in (InputError, errors.ImageError)}
    for node in sources():
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds:
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    error = kinds[node.func.id]("seen", code=keyword.value.value)  # type: ignore[attr-defined]
                    assert error.code in CODES[status_of(error)]


# --- the document and the replies ---


def validator(openapi: dict[str, Any], schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": openapi["components"]})


def of_reply(openapi: dict[str, Any], path: str, method: str, status: int) -> dict[str, Any]:
    """Return the description of one reply."""
    described = openapi["paths"][path][method]["responses"][str(status)]
    return dict(openapi["components"]["responses"][described["$ref"].rpartition("/")[2]] if "$ref" in described else described)


ONE = ("/predict", "/predict", "post")
V2 = "/v2/models/{model}"
GOOD: dict[str, tuple[str, str, str, int]] = {
    "alive": ("/healthz", "/healthz", "get", 200),
    "ready": ("/readyz", "/readyz", "get", 200),
    "the document": ("/openapi.json", "/openapi.json", "get", 200),
    "the model": ("/model", "/model", "get", 200),
    "one image": (*ONE, 200),
    "no image": (*ONE, 422),
    "nothing": (*ONE, 400),
    "json": (*ONE, 415),
    "another model": ("/predict?model=x", "/predict", "post", 404),
    "artifacts": ("/artifacts", "/artifacts", "get", 200),
    "latest": ("/artifacts/colors/latest", "/artifacts/{name}/{version}", "get", 200),
    "a manifest": ("/artifacts/colors/1", "/artifacts/{name}/{version}", "get", 200),
    "no version": ("/artifacts/colors/9", "/artifacts/{name}/{version}", "get", 404),
    "v2": ("/v2", "/v2", "get", 200),
    "v2 live": ("/v2/health/live", "/v2/health/live", "get", 200),
    "v2 ready": ("/v2/health/ready", "/v2/health/ready", "get", 200),
    "v2 model": ("/v2/models/colors", V2, "get", 200),
    "v2 no model": ("/v2/models/x", V2, "get", 404),
    "v2 model ready": ("/v2/models/colors/ready", f"{V2}/ready", "get", 200),
    "v2 config": ("/v2/models/colors.pixels/config", f"{V2}/config", "get", 200),
    "v2 statistics": ("/v2/models/stats", "/v2/models/stats", "get", 200),
    "v2 inference": ("/v2/models/colors.pixels/infer", f"{V2}/infer", "post", 200),
    "v2 no inference": ("/v2/models/colors/infer", f"{V2}/infer", "post", 400),
    "v2 index": ("/v2/repository/index", "/v2/repository/index", "post", 200),
    "v2 loading": ("/v2/repository/models/x/load", "/v2/repository/models/{model}/load", "post", 403),
    "v2 logging": ("/v2/logging", "/v2/logging", "get", 501),
}
PIXELS = {"inputs": [{"name": "image", "shape": [1, 12, 16, 3], "datatype": "UINT8", "data": [200] * 576}]}


@pytest.mark.parametrize("case", GOOD)
def test_a_real_reply_matches_its_schema(site: Any, openapi: dict[str, Any], artifact_template: Path, case: str) -> None:
    address, path, method, status = GOOD[case]
    sent: dict[str, Any] = {
        "one image": {"content": (artifact_template / "golden" / "0.jpg").read_bytes()},
        "no image": {"content": b"text"},
        "json": {"json": {}},
        "v2 inference": {"json": PIXELS},
        "v2 no inference": {"json": {}},
    }.get(case, {})
    reply = site.client.request(method, address, **sent)
    assert reply.status_code == status
    described = of_reply(openapi, path, method, status)
    validator(openapi, described["content"]["application/json"]["schema"]).validate(reply.json())
    assert [name for name, header in described["headers"].items() if header.get("required") and name not in reply.headers] == []


PARTS = {"a part": ("bytes=3-9", 206), "all of it": ("bytes=0-", 206), "nothing of it": ("bytes=99999999-", 416)}


@pytest.mark.parametrize(("header", "status"), PARTS.values(), ids=PARTS)
def test_the_reply_to_a_range_request_matches_the_document(
    site: Any, openapi: dict[str, Any], header: str, status: int
) -> None:
    reply = site.client.get("/artifacts/colors/1/manifest.json", headers={"Range": header})
    assert reply.status_code == status
    described = of_reply(openapi, "/artifacts/{name}/{version}/{path}", "get", status)
    assert reply.headers["content-type"] in described["content"]
    for name, each in described["headers"].items():
        jsonschema_rs.Draft202012Validator(each["schema"]).validate(reply.headers[name])


def test_the_reply_to_several_files_matches_its_schema(site: Any, openapi: dict[str, Any], artifact_template: Path) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    files = [("file", ("a.jpg", photo)), ("file", ("b.jpg", b"text")), ("file", ("c.jpg", b""))]
    reply = site.client.post("/predict", files=files)
    schema = of_reply(openapi, "/predict", "post", 200)["content"]["application/json"]["schema"]
    validator(openapi, schema).validate(reply.json())
    assert [result.get("code") for result in reply.json()["results"]] == [None, "not_an_image", "image_empty"]


def test_the_replies_of_a_server_without_an_artifact_match_their_schemas(tmp_path: Path, serving: Any) -> None:
    with serving(tmp_path / "missing") as site:
        openapi = site.client.get("/openapi.json").json()
        for address, path in (
            ("/readyz", "/readyz"),
            ("/model", "/model"),
            ("/v2/health/ready", "/v2/health/ready"),
            ("/v2/models/missing", V2),
            ("/v2/models/missing/ready", f"{V2}/ready"),
        ):
            schema = of_reply(openapi, path, "get", 503)["content"]["application/json"]["schema"]
            validator(openapi, schema).validate(site.client.get(address).json())


def test_it_describes_which_urls_need_a_token(artifact_template: Path, tmp_path: Path, serving: Any) -> None:
    (tmp_path / "tokens").write_text("a-token-of-enough-letters\n")
    with serving(artifact_template, tokens=Tokens(tmp_path / "tokens")) as site:
        unauthorized = site.client.get("/openapi.json")
        openapi = site.client.get("/openapi.json", headers={"Authorization": "Bearer a-token-of-enough-letters"}).json()
    assert openapi["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    described = of_reply(openapi, "/openapi.json", "get", 401)
    validator(openapi, described["content"]["application/json"]["schema"]).validate(unauthorized.json())
    operations = {path: place["get" if "get" in place else "post"] for path, place in openapi["paths"].items()}
    free = {path for path, operation in operations.items() if operation.get("security") == []}
    assert free == {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"} | PATHS


def test_the_error_schema_rejects_other_members_codes_and_lines(openapi: dict[str, Any]) -> None:
    error = {"error": "x", "code": "not_found", "request_id": "1"}
    validator(openapi, {"$ref": "#/components/schemas/Error"}).validate(error)
    for change in ({"code": "new"}, {"error": "two\nlines"}, {"more": 1}):
        with pytest.raises(jsonschema_rs.ValidationError):
            validator(openapi, {"$ref": "#/components/schemas/Error"}).validate(error | change)


# --- generated requests ---


KNOWN: dict[str, list[str]] = {
    "model": ["colors", "colors.pixels", "x"],
    "name": ["colors", "x"],
    "version": ["1", "2", "01"],
    "path": ["labels.txt", "manifest.json", "golden/0.jpg", "x"],
    "Range": ["bytes=0-", "bytes=3-9", "bytes=-9", "bytes=9-3", "bytes=99999999-", "x"],
    "If-Match": ["*", '"x"'],
}


def with_known_names(openapi: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the names of this server, so that generated requests reach more than errors."""
    found = copy.deepcopy(openapi)
    for place in found["paths"].values():
        for described in (place, *(place[method] for method in place.keys() - {"parameters"})):
            for parameter in described.get("parameters", []):
                if parameter["name"] in KNOWN and parameter["in"] != "query":
                    parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
    return found


def fuzz(site: Any, openapi: dict[str, Any], mode: GenerationMode, *, examples: int) -> Counter[int]:
    """Send requests generated from the document, valid or not; validate each reply; count the statuses."""
    schema = schemathesis.openapi.from_dict(with_known_names(openapi))
    statuses = Counter[int]()
    expected = {501, 503, 504}  # unsupported extensions, and deadlines of a millisecond
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            if mode.is_negative and not operation.body:
                continue  # almost nothing that can be sent is invalid
            varied = operation.method == "post" or (operation.method == "get" and operation.path_parameters)

            @seed(20261126)
            @settings(
                max_examples=examples if varied else 2,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                response = case.call(base_url=site.url, session=session)
                statuses[response.status_code] += 1
                checks = [check for check in CHECKED if check.__name__ != NAMES[0] or response.status_code not in expected]
                case.validate_response(response, checks=checks + (REJECTED if mode.is_negative else []))

            send()
    return statuses


EXAMPLES = [
    pytest.param(10, id="10"),
    pytest.param(50, id="50", marks=pytest.mark.long),
    pytest.param(500, id="500", marks=pytest.mark.nightly),
]


@pytest.mark.long
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("examples", EXAMPLES)
def test_replies_to_generated_requests_match_the_document(
    site: Any, openapi: dict[str, Any], mode: GenerationMode, examples: int, caplog: pytest.LogCaptureFixture
) -> None:
    statuses = fuzz(site, openapi, mode, examples=examples)
    print(mode.value, statuses.total(), dict(statuses))
    assert ({400, 404} if mode.is_negative else {200, 400, 403, 404, 501}) <= statuses.keys()
    assert [record for record in caplog.records if record.exc_info] == []
    assert site.client.get("/readyz").status_code == 200
