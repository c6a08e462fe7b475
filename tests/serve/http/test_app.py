"""The HTTP service: good images are classified, everything else is an error in one format."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import logging
import pkgutil
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.routing import Route

import edgeline.serve as serve
from edgeline.serve import errors
from edgeline.serve.classifier import Classifier, Outputs
from edgeline.serve.errors import ArtifactError, ImageError, InputError
from edgeline.serve.http import routes
from edgeline.serve.http.app import AppOptions, create_app
from edgeline.serve.http.responses import status_of
from edgeline.serve.preprocess import Limits
from tests.support.processes import HTTP

JPEG = {"Content-Type": "image/jpeg"}
SMALL = Limits(max_bytes=100_000, max_pixels=10_000)


@pytest.fixture(name="photo", scope="module")
def golden_photo(artifact_template: Path) -> bytes:
    return (artifact_template / "golden" / "0.jpg").read_bytes()


@pytest.fixture(name="small", scope="module")
def small_site(artifact_template: Path, serving: Any) -> Iterator[Any]:
    def open_small(path: Path) -> Classifier:
        return Classifier.open(path, limits=SMALL)

    with serving(artifact_template, limits=SMALL, open_classifier=open_small) as site:
        yield site


def png(size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 40, 30)).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)) + chunk(b"IDAT", b"")


def is_error(reply: httpx.Response, status: int, code: str) -> None:
    body = reply.json()
    assert (reply.status_code, body["code"]) == (status, code)
    assert body.keys() == {"error", "code", "request_id"}
    assert body["request_id"] == reply.headers["x-request-id"]
    assert body["error"]
    assert "\n" not in body["error"]
    assert str(Path(serve.__path__[0]).parent) not in reply.text
    assert "Traceback" not in reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"


# Routes

ROUTE_MODULES = [
    *(f"{routes.__name__}.{module.name}" for module in pkgutil.iter_modules(routes.__path__)),
    "edgeline.serve.http.open_inference.routes",
]


def handlers_of(module: Any) -> set[str]:
    """The qualified names of a module's public coroutines, of its classes too, that take nothing but a request."""
    classes = [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]
    values = [value for holder in (module, *classes) for value in vars(holder).values()]
    return {
        value.__qualname__
        for value in values
        if inspect.iscoroutinefunction(value)
        and not value.__name__.startswith("_")
        and inspect.signature(value).parameters.keys() - {"self"} == {"request"}
    }


def test_every_handler_has_a_route(site: Any) -> None:
    app = create_app(site.service, AppOptions(store=Path("store")))
    routed = {route.endpoint.__qualname__ for route in app.routes if isinstance(route, Route)}
    handlers = set().union(*(handlers_of(importlib.import_module(name)) for name in ROUTE_MODULES))
    assert {"PredictRoutes.predict", "V2.infer"} <= handlers
    assert handlers - routed == set()


def test_the_page_about_http_lists_every_group_of_routes(site: Any) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "http.md").read_text(encoding="utf-8")
    paths = site.client.get("/openapi.json").json()["paths"]
    first = {"/" + path.split("/")[1] for path in paths if "page." not in path}
    assert first >= {"/predict", "/drift", "/v2"}
    assert [path for path in first if f" {path}" not in page] == []


# Predictions


def test_an_image_is_classified(site: Any, photo: bytes) -> None:
    reply = site.client.post("/predict", content=photo, headers=JPEG)
    assert reply.status_code == 200
    answer = reply.json()
    assert {name: answer[name] for name in ("model", "version", "variant")} == {
        "model": "colors",
        "version": 1,
        "variant": "onnx-fp32",
    }
    assert [prediction["label"] for prediction in answer["predictions"]] == ["red", "green", "blue", "dark"]
    assert answer["predictions"][0].keys() == {"label", "probability", "index"}
    assert answer["predictions"][0]["probability"] == pytest.approx(0.9968, abs=1e-3)


FORMS: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "image/jpeg": lambda data: {"content": data, "headers": JPEG},
    "octet-stream": lambda data: {"content": data, "headers": {"Content-Type": "application/octet-stream"}},
    "no content type": lambda data: {"content": data},
    "chunked": lambda data: {"content": iter([data[:100], data[100:]]), "headers": JPEG},
    "multipart": lambda data: {"files": {"file": ("a.jpg", data, "image/jpeg")}},
    "G4, multipart with other fields": lambda data: {"files": {"f": ("a.jpg", data)}, "data": {"top_k": "1", "note": "a"}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_body_gives_the_same_answer(site: Any, photo: bytes, form: Callable[[bytes], dict[str, Any]]) -> None:
    plain = site.client.post("/predict", content=photo, headers=JPEG).json()
    assert site.client.post("/predict", **form(photo)).json() == plain


@pytest.mark.parametrize(("query", "count"), [("", 4), ("?top_k=1", 1), ("?top_k=3", 3), ("?top_k=999", 4)])
def test_top_k_sets_the_number_of_classes(site: Any, photo: bytes, query: str, count: int) -> None:
    assert len(site.client.post(f"/predict{query}", content=photo).json()["predictions"]) == count


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)], ids=str)
def test_images_of_one_pixel_width_or_height_are_classified(site: Any, size: tuple[int, int]) -> None:
    assert site.client.post("/predict", content=png(size)).json()["predictions"][0]["label"] == "red"


def test_every_response_has_nosniff_and_a_request_id(site: Any, photo: bytes) -> None:
    for reply in (site.client.get("/healthz"), site.client.get("/readyz"), site.client.post("/predict", content=photo)):
        assert reply.status_code == 200
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert len(reply.headers["x-request-id"]) == 16
        assert "server" not in reply.headers


# Client errors

REJECTED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no body": ({}, 400, "image_empty"),
    "an empty file": ({"files": {"f": ("a.jpg", b"")}}, 400, "image_empty"),
    "text": ({"content": b"hello", "headers": JPEG}, 422, "not_an_image"),
    "half an image": ({"content": png((90, 70))[:60], "headers": JPEG}, 422, "image_truncated"),
    "a bomb": ({"content": bomb(), "headers": JPEG}, 413, "image_too_large"),
    "over the pixel limit": ({"content": png((101, 100))}, 413, "image_too_large"),
    "over the byte limit": ({"content": bytes(100_001)}, 413, "body_too_large"),
    "over the byte limit, chunked": ({"content": [bytes(60_000)] * 2}, 413, "body_too_large"),
    "over the byte limit in a form": ({"files": {"f": ("a.jpg", bytes(100_001))}}, 413, "image_too_large"),
    "far over it in a form": ({"files": {"f": ("a.jpg", bytes(200_000))}}, 413, "body_too_large"),
    "json": ({"json": {"url": "http://127.0.0.1/"}}, 415, "media_type_not_supported"),
    "a plain form": ({"data": {"a": "b"}}, 422, "not_an_image"),
    "gzip": ({"content": zlib.compress(png()), "headers": {"Content-Encoding": "gzip"}}, 415, "content_encoding_not_supported"),
    "65 files": ({"files": [("f", ("a", b"a"))] * 65}, 400, "multipart_invalid"),
    "a form without a file": ({"files": {"note": (None, "a")}}, 400, "multipart_invalid"),
    "no boundary": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "multipart_invalid"),
    "unterminated": (
        {
            "content": b'--B\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + png(),
            "headers": {"Content-Type": "multipart/form-data; boundary=B"},
        },
        400,
        "multipart_invalid",
    ),
    "top_k=0": ({"params": {"top_k": "0"}, "content": png()}, 400, "top_k_invalid"),
    "top_k=-1": ({"params": {"top_k": "-1"}, "content": png()}, 400, "top_k_invalid"),
    "top_k=1.5": ({"params": {"top_k": "1.5"}, "content": png()}, 400, "top_k_invalid"),
    "top_k of a huge number": ({"params": {"top_k": "9" * 5000}, "content": png()}, 400, "top_k_invalid"),
    "top_k in other digits": ({"params": {"top_k": "\u0663"}, "content": png()}, 400, "top_k_invalid"),
    "empty top_k": ({"params": {"top_k": ""}, "content": png()}, 400, "top_k_invalid"),
    "top_k twice": ({"params": {"top_k": ["1", "2"]}, "content": png()}, 400, "top_k_invalid"),
}


@pytest.mark.parametrize(("request_", "status", "code"), REJECTED.values(), ids=REJECTED)
def test_a_client_error_is_a_4xx_with_its_code(small: Any, request_: dict[str, Any], status: int, code: str) -> None:
    is_error(small.client.post("/predict", **request_), status, code)


NO_SUCH = [("GET", "/no"), ("GET", "/predict/"), ("POST", "/PREDICT"), ("GET", "//healthz"), ("GET", "/docs"), ("POST", "/x")]


@pytest.mark.parametrize(("method", "path"), NO_SUCH)
def test_an_unknown_path_is_a_404(site: Any, method: str, path: str) -> None:
    is_error(site.client.request(method, site.url + path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/predict"), ("DELETE", "/predict"), ("OPTIONS", "/predict"), ("POST", "/readyz")]
)
def test_a_wrong_method_is_a_405_with_the_allowed_ones(site: Any, method: str, path: str) -> None:
    reply = site.client.request(method, path)
    is_error(reply, 405, "method_not_allowed")
    assert set(reply.headers["allow"].split(", ")) == ({"POST", "PUT"} if path == "/predict" else {"GET", "HEAD"})


def test_head_returns_the_headers_without_a_body(site: Any) -> None:
    reply = site.client.head("/healthz")
    assert (reply.status_code, reply.content) == (200, b"")


def test_an_unknown_path_is_not_reflected_in_the_error(site: Any) -> None:
    assert "script" not in site.client.get("/<script>alert(1)</script>").text


IDS = {
    "a uuid": ("123e4567-e89b-12d3-a456-426614174000", True),
    "any printable ASCII": ("a/b:c=d;e<f>", True),
    "128 characters": ("x" * 128, True),
    "129 characters": ("x" * 129, False),
    "a blank": ("a b", False),
    "other letters": ("\xe9", False),
    "a tab": ("a\tb", False),
    "empty": ("", False),
}


@pytest.mark.parametrize(("sent", "echoed"), IDS.values(), ids=IDS)
def test_a_request_id_is_echoed_only_if_it_is_safe(site: Any, sent: str, echoed: bool) -> None:
    reply = site.client.get("/nothing", headers={"X-Request-Id": sent.encode("latin-1")})
    assert (reply.headers["x-request-id"] == sent) is echoed
    is_error(reply, 404, "not_found")


def every_subclass(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*map(every_subclass, kind.__subclasses__()))


def codes_raised() -> set[tuple[str, str]]:
    """(class, code) of every InputError that the package's source constructs."""
    kinds = {kind.__name__: kind for kind in every_subclass(InputError)}
    found = {(name, kind.code) for name, kind in kinds.items()}
    folder = Path(serve.__path__[0])
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                for keyword in node.keywords:
                    constants = [n.value for n in ast.walk(keyword.value) if isinstance(n, ast.Constant)]
                    found |= {(node.func.id, str(value)) for value in constants if keyword.arg == "code"}
    return found


def test_every_code_of_a_client_error_maps_to_a_4xx() -> None:
    codes = codes_raised()
    assert {"image_empty", "image_too_large", "not_an_image", "top_k_invalid", "multipart_invalid"} <= {
        code for _, code in codes
    }
    for name, code in codes:
        assert 400 <= status_of(getattr(errors, name)("seen", code=code)) < 500


@pytest.mark.parametrize(
    ("error", "status"),
    [(ImageError("x"), 422), (InputError("x"), 400), (ImageError("x", code="new"), 422), (InputError("x", code="new"), 400)],
)
def test_a_new_code_of_a_client_error_is_a_4xx_too(error: InputError, status: int) -> None:
    assert status_of(error) == status


# Sizes, on the wire


def test_a_declared_length_over_the_limit_is_rejected_before_the_body_is_sent(site: Any) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
    with site.connect() as connection:
        connection.sendall(head)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_client_that_sends_its_whole_body_first_still_gets_the_413(site: Any) -> None:
    is_error(site.client.post("/predict", content=bytes(20 * 2**20), headers=JPEG), 413, "body_too_large")


def test_an_endless_body_is_cut_off(site: Any) -> None:
    sent = 0
    piece = b"10000\r\n" + bytes(2**16) + b"\r\n"
    with site.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        deadline = time.monotonic() + 15
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(piece)
                sent += len(piece)
    assert time.monotonic() < deadline, "the server continues to read"
    assert sent > Limits().max_bytes


def test_an_endless_body_of_tiny_chunks_is_cut_off(small: Any) -> None:
    body = b"1\r\nx\r\n" * (SMALL.max_bytes + 1)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = small.raw(head + body + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"too_many_chunks" in answer


BROKEN = {
    "a bad chunk": b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
    "a negative length": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a huge length": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a header without end": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
}


@pytest.mark.parametrize("request_", BROKEN.values(), ids=BROKEN)
def test_malformed_http_gets_one_4xx_and_the_connection_closes(
    site: Any, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = site.raw(request_)
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1") == 1
    assert not [record for record in caplog.records if record.exc_info]
    assert site.client.get("/healthz").status_code == 200


def test_a_client_that_disconnects_in_the_middle_logs_nothing(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        with site.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    assert site.client.get("/healthz").status_code == 200
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING and "serve" in record.name] == []
    assert not [record for record in caplog.records if record.exc_info]


def test_a_connection_is_reused_after_a_good_and_a_bad_image(site: Any, photo: bytes) -> None:
    def request(body: bytes, last: bool) -> bytes:
        return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (
            len(body),
            b"Connection: close\r\n" if last else b"",
            body,
        )

    answers = site.raw(request(photo, False) + request(b"text", False) + request(photo, True))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"422", b"200"]


# Isolation


def test_a_bad_image_does_not_affect_concurrent_good_ones(site: Any, artifact_template: Path) -> None:
    photos = [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]
    bad = [b"", b"text", photos[0][:-100], bomb()]
    alone = [site.client.post("/predict", content=photo).json() for photo in photos]

    def post(body: bytes) -> tuple[int, Any]:
        reply = HTTP.post(f"{site.url}/predict", content=body)
        return reply.status_code, reply.json()

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(post, [body for _ in range(6) for body in (*photos, *bad)]))
    for index, (status, answer) in enumerate(results):
        if index % 8 < 4:
            assert (status, answer) == (200, alone[index % 8])
        else:
            assert (status, answer["code"]) == [
                (400, "image_empty"),
                (422, "not_an_image"),
                (422, "image_truncated"),
                (413, "image_too_large"),
            ][index % 8 - 4]


class Busy(Classifier):
    """A classifier that waits for a signal, to keep the workers busy as long as a test needs."""

    begun: threading.Semaphore
    go_on: threading.Event

    def pixels(self, image: bytes) -> np.ndarray:
        self.begun.release()
        assert self.go_on.wait(20)
        return super().pixels(image)


def test_health_checks_respond_while_all_workers_are_busy(artifact_template: Path, photo: bytes, serving: Any) -> None:
    Busy.begun, Busy.go_on = threading.Semaphore(0), threading.Event()
    with serving(artifact_template, open_classifier=Busy.open) as site, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(httpx.post, f"{site.url}/predict", content=photo, timeout=20) for _ in range(4)]
        try:
            assert Busy.begun.acquire(timeout=20)
            assert Busy.begun.acquire(timeout=20)
            assert [site.client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        finally:
            Busy.go_on.set()
        assert [future.result().status_code for future in waiting] == [200] * 4


def test_an_unexpected_exception_is_a_500_without_its_details(
    artifact_template: Path, photo: bytes, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(Classifier):
        def pixels(self, image: bytes) -> np.ndarray:
            raise RuntimeError("secret in /etc/shadow")

    with serving(artifact_template, open_classifier=Buggy.open) as site:
        reply = site.client.post("/predict", content=photo)
        is_error(reply, 500, "internal_error")
        assert "secret" not in reply.text
        assert site.client.get("/healthz").status_code == 200
    [logged] = [record for record in caplog.records if record.exc_info]
    assert reply.json()["request_id"] in logged.getMessage()


def test_a_model_output_that_is_not_finite_is_a_500_with_its_own_code(
    artifact_template: Path, photo: bytes, serving: Any
) -> None:
    class NotFinite(Classifier):
        def run(self, pixels_NHW3: np.ndarray, *, explain: bool = False) -> Outputs:
            if self.self_test is not None:
                raise ArtifactError("details", code="model_output_not_finite")
            return super().run(pixels_NHW3, explain=explain)

    with serving(artifact_template, open_classifier=NotFinite.open) as site:
        is_error(site.client.post("/predict", content=photo), 500, "model_output_not_finite")


# Readiness


def test_a_loaded_artifact_is_ready_and_reports_its_self_test(site: Any) -> None:
    answer = site.client.get("/readyz").json()
    assert (answer["status"], answer["model"], answer["version"]) == ("ready", "colors", 1)
    assert answer["self_test"]["samples"] == 4
    assert answer["self_test"]["max_difference"] <= answer["self_test"]["tolerance"]


def test_before_the_model_is_loaded_the_server_is_alive_and_not_ready(
    artifact_template: Path, photo: bytes, serving: Any
) -> None:
    go_on = threading.Event()

    def open_late(path: Path) -> Classifier:
        assert go_on.wait(20)
        return Classifier.open(path)

    with serving(artifact_template, open_classifier=open_late, wait=False) as site:
        try:
            assert site.client.get("/healthz").status_code == 200
            is_error(site.client.get("/readyz"), 503, "loading")
            reply = site.client.post("/predict", content=photo)
            is_error(reply, 503, "loading")
            assert int(reply.headers["retry-after"]) > 0
        finally:
            go_on.set()
        site.wait_until_loaded()
        assert site.client.get("/readyz").status_code == 200
        assert site.client.post("/predict", content=photo).status_code == 200


def damage_model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(bytes((folder / "model.onnx").stat().st_size))


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def add_a_file(folder: Path) -> None:
    (folder / "extra").touch()


def remove_all(folder: Path) -> None:
    folder.rename(folder.parent / "gone")


def swap_labels(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    golden["samples"][0]["label"] = manifest["labels"][1]
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))


DAMAGES = {
    "a damaged model": (damage_model, "digest_mismatch", "model.onnx"),
    "a damaged manifest": (damage_manifest, "manifest_invalid", "not JSON"),
    "an extra file": (add_a_file, "artifact_invalid", "1 has files that are not in its manifest: extra"),
    "no artifact": (remove_all, "artifact_invalid", "no artifact at 1"),
}


@pytest.mark.parametrize(("damage", "code", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_artifact_leaves_the_server_alive_and_reports_the_reason(
    make_artifact: Any, serving: Any, damage: Callable[[Path], None], code: str, reason: str
) -> None:
    folder = make_artifact()
    damage(folder)
    with serving(folder) as site:
        assert site.client.get("/healthz").status_code == 200
        for reply in (site.client.get("/readyz"), site.client.post("/predict", content=png())):
            is_error(reply, 503, code)
            assert reason in reply.json()["error"]
            assert str(folder.parent) not in reply.text


def test_an_artifact_that_fails_its_golden_samples_is_never_ready(make_artifact: Any, seal: Any, serving: Any) -> None:
    folder = make_artifact()
    swap_labels(folder)
    seal(folder)
    with serving(folder) as site:
        is_error(site.client.get("/readyz"), 503, "golden_mismatch")
        assert "golden/0.jpg" in site.client.get("/readyz").json()["error"]


def test_an_exception_while_loading_is_not_reported_as_loading(artifact_template: Path, serving: Any) -> None:
    def break_down(path: Path) -> Classifier:
        raise RuntimeError(f"secret {path}")

    with serving(artifact_template, open_classifier=break_down) as site:
        is_error(site.client.get("/readyz"), 503, "internal_error")
        assert "secret" not in site.client.get("/readyz").text
