"""The V2 routes of a real server: answers, metadata, error responses, deadlines and statistics."""

import ast
import gzip
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import edgeline.serve as serve
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError
from edgeline.serve.http.open_inference.routes import V2

HEADER = "Inference-Header-Content-Length"
INFER, PIXELS = "/v2/models/colors/infer", "/v2/models/colors.pixels/infer"


@pytest.fixture(name="photos", scope="module")
def golden_photos(artifact_template: Path) -> list[bytes]:
    return [(artifact_template / "golden" / f"{index}.jpg").read_bytes() for index in range(4)]


@pytest.fixture(name="classifier", scope="module")
def plain_classifier(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template)


def images(files: list[bytes], **members: Any) -> dict[str, Any]:
    """An inference request with image files, for httpx."""
    blob = b"".join(struct.pack("<I", len(file)) + file for file in files)
    described = {"name": "image", "shape": [len(files), 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [described], **members}).encode()
    return {"content": head + blob, "headers": {HEADER: str(len(head))}}


def pixels(pixels_NHW3: np.ndarray, **members: Any) -> dict[str, Any]:
    """An inference request with pixels, for httpx."""
    blob, shape = pixels_NHW3.tobytes(), list(pixels_NHW3.shape)
    described = {"name": "image", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [described], **members}).encode()
    return {"content": head + blob, "headers": {HEADER: str(len(head))}}


def tensors(reply: httpx.Response) -> dict[str, np.ndarray]:
    assert reply.status_code == 200, reply.text
    length = int(reply.headers.get(HEADER, len(reply.content)))
    tail, found = reply.content[length:], {}
    for output in json.loads(reply.content[:length])["outputs"]:
        if "data" in output:
            found[output["name"]] = np.array(output["data"], np.float32).reshape(output["shape"])
        else:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = np.frombuffer(tail[:size], "<f4").reshape(output["shape"])
            tail = tail[size:]
    return found


def is_rejected(reply: httpx.Response, status: int, code: str) -> str:
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert (reply.status_code, body["code"]) == (status, code), body
    assert body.keys() == {"error", "code", "request_id"}
    assert "\n" not in body["error"]
    assert str(Path(serve.__path__[0]).parent) not in reply.text
    return str(body["error"])


# --- answers ---


def test_image_files_get_the_outputs_of_the_classifier(site: Any, photos: list[bytes], classifier: Classifier) -> None:
    found = tensors(site.client.post(INFER, **images(photos)))
    for row, photo in enumerate(photos):
        probabilities_NK, logits_NK = classifier.answer(classifier.pixels(photo)[None])
        assert found["probabilities"][row].tobytes() == probabilities_NK[0].tobytes()
        assert found["logits"][row].tobytes() == logits_NK[0].tobytes()


def test_a_batch_equals_its_images_alone_to_the_bit(site: Any, photos: list[bytes]) -> None:
    batch = tensors(site.client.post(INFER, **images(photos)))
    singles = [tensors(site.client.post(INFER, **images([photo]))) for photo in photos]
    for name in ("probabilities", "logits"):
        assert batch[name].tobytes() == b"".join(single[name].tobytes() for single in singles)


def test_pixels_get_the_same_answer_as_their_image_file(site: Any, photos: list[bytes], classifier: Classifier) -> None:
    decoded_NHW3 = np.stack([classifier.pixels(photo) for photo in photos])
    files, ready = tensors(site.client.post(INFER, **images(photos))), tensors(site.client.post(PIXELS, **pixels(decoded_NHW3)))
    assert {name: value.tobytes() for name, value in files.items()} == {name: value.tobytes() for name, value in ready.items()}


def test_every_form_of_a_request_gets_the_same_answer(site: Any, photos: list[bytes], classifier: Classifier) -> None:
    pixels_NHW3 = classifier.pixels(photos[0])[None]
    plain = pixels(pixels_NHW3)
    described = {"name": "image", "shape": list(pixels_NHW3.shape), "datatype": "UINT8"}
    length = plain["headers"][HEADER]
    forms: dict[str, dict[str, Any]] = {
        "raw tensor": plain,
        "raw both ways": pixels(pixels_NHW3, parameters={"binary_data_output": True}),
        "flat JSON": {"json": {"inputs": [described | {"data": pixels_NHW3.ravel().tolist()}]}},
        "nested JSON": {"json": {"inputs": [described | {"data": pixels_NHW3.tolist()}]}},
        "gzip": {"content": gzip.compress(plain["content"]), "headers": {"Content-Encoding": "gzip", HEADER: length}},
        "deflate": {"content": zlib.compress(plain["content"]), "headers": {"Content-Encoding": "deflate", HEADER: length}},
        "the body alone": {"content": pixels_NHW3.tobytes(), "headers": {HEADER: "0"}},
        "chunked": {"content": iter([plain["content"][:50], plain["content"][50:]]), "headers": {HEADER: length}},
        "any content type": {**plain, "headers": {HEADER: length, "Content-Type": "text/html; charset=x"}},
    }
    found = {form: tensors(site.client.post(PIXELS, **request)) for form, request in forms.items()}
    bits = {form: found[form]["probabilities"].tobytes() + found[form]["logits"].tobytes() for form in forms}
    assert set(bits.values()) == {bits["raw tensor"]}, [form for form in bits if bits[form] != bits["raw tensor"]]


def test_the_body_alone_is_one_image_file(site: Any, photos: list[bytes]) -> None:
    reply = site.client.post(INFER, content=photos[2], headers={HEADER: "0"})
    assert reply.headers["content-type"] == "application/octet-stream"
    as_json = site.client.post(INFER, content=photos[2], headers={HEADER: "0", "Accept": "application/json"})
    assert as_json.headers["content-type"] == "application/json"
    plain = tensors(site.client.post(INFER, **images([photos[2]])))
    for found in (tensors(reply), tensors(as_json)):
        assert found["logits"].tobytes() == plain["logits"].tobytes()


def test_classes_have_their_labels(site: Any, photos: list[bytes]) -> None:
    outputs = [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}]
    [output] = site.client.post(INFER, **images(photos[:2], outputs=outputs)).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert [element.split(":")[1:] for element in output["data"]] == [
        ["0", "red"],
        ["1", "green"],
        ["1", "green"],
        ["2", "blue"],
    ]


def test_a_reply_has_model_version_and_id_but_no_empty_id(site: Any, photos: list[bytes]) -> None:
    named = site.client.post(f"{INFER}", **images(photos[:1], id="r\u20ac")).json()
    assert (named["model_name"], named["model_version"], named["id"]) == ("colors", "1", "r€")
    assert "id" not in site.client.post("/v2/models/colors/versions/1/infer", **images(photos[:1], id="")).json()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_reply_counts_uncompressed_bytes(site: Any, photos: list[bytes], encoding: str) -> None:
    request = images(photos, parameters={"binary_data_output": True})
    request["headers"]["Accept-Encoding"] = encoding
    reply = site.client.post(INFER, **request)
    assert (reply.headers["content-encoding"], reply.headers["vary"]) == (encoding, "Accept-Encoding")
    assert tensors(reply)["logits"].shape == (4, 4)  # httpx has decompressed it


# --- metadata ---


def test_metadata_has_the_artifact_the_labels_and_the_preprocessing(site: Any, artifact_template: Path) -> None:
    for model, datatype, shape in (("colors", "BYTES", [-1, 1]), ("colors.pixels", "UINT8", [-1, 12, 16, 3])):
        found = site.client.get(f"/v2/models/{model}").json()
        assert (found["name"], found["versions"], found["platform"]) == (model, ["1"], "onnx_onnxv1")
        assert found["inputs"] == [{"name": "image", "datatype": datatype, "shape": shape}]
        assert [output["shape"] for output in found["outputs"]] == [[-1, 4], [-1, 4]]
        properties = found["properties"]
        manifest = (artifact_template / "manifest.json").read_bytes()
        assert properties["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
        assert json.loads(properties["labels"]) == ["red", "green", "blue", "dark"]
        assert json.loads(properties["preprocess"])["height"] == 12
        assert all(isinstance(value, str) for value in properties.values())


def test_the_dims_of_the_configuration_exclude_the_batch(site: Any) -> None:
    found = site.client.get("/v2/models/colors.pixels/versions/1/config").json()
    assert found["max_batch_size"] == 64
    assert found["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [12, 16, 3]}]
    assert site.client.get("/v2/models/colors/config").json()["input"][0]["data_type"] == "TYPE_STRING"


@pytest.mark.parametrize(("body", "count"), [(b"", 2), (b"{}", 2), (b'{"ready": true}', 2), (b'{"ready": false}', 2)])
def test_the_index_lists_both_models(site: Any, body: bytes, count: int) -> None:
    rows = site.client.post("/v2/repository/index", content=body).json()
    assert [row["name"] for row in rows] == ["colors", "colors.pixels"][:count]
    assert {(row["version"], row["state"], row["reason"]) for row in rows} == {("1", "READY", "")}


def test_the_server_advertises_what_works(site: Any) -> None:
    found = site.client.get("/v2").json()
    assert found == site.client.get("/v2/").json()
    assert "binary_tensor_data" in found["extensions"]
    assert not {"sequence", "trace", "logging", "system_shared_memory", "schedule_policy"} & set(found["extensions"])


# --- error responses ---

JPEG_IN_JSON = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
REJECTED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "an unknown model": ("GET", "/v2/models/nope", {}, 404, "not_found"),
    "an unknown model's infer": ("POST", "/v2/models/nope/infer", {"content": b"{}"}, 404, "not_found"),
    "an unknown model's pixels": ("GET", "/v2/models/nope.pixels", {}, 404, "not_found"),
    "an unknown version": ("GET", "/v2/models/colors/versions/2", {}, 404, "not_found"),
    "version 01": ("GET", "/v2/models/colors/versions/01/ready", {}, 404, "not_found"),
    "version v1": ("GET", "/v2/models/colors/versions/v1/config", {}, 404, "not_found"),
    "a version of 5,000 digits": ("GET", f"/v2/models/colors/versions/{'9' * 5000}/stats", {}, 404, "not_found"),
    "an unknown path": ("GET", "/v2/nope", {}, 404, "not_found"),
    "a name with a slash": ("GET", "/v2/models/..%2f..%2fetc", {}, 404, "not_found"),
    "a name with NUL": ("GET", "/v2/models/colors%00/ready", {}, 404, "not_found"),
    "GET on infer": ("GET", INFER, {}, 405, "method_not_allowed"),
    "POST on metadata": ("POST", "/v2/models/colors", {"content": b"{}"}, 405, "method_not_allowed"),
    "GET on index": ("GET", "/v2/repository/index", {}, 405, "method_not_allowed"),
    "load": ("POST", "/v2/repository/models/colors/load", {"content": b"{}"}, 403, "management_not_offered"),
    "unload": ("POST", "/v2/repository/models/colors/unload", {"content": b"{}"}, 403, "management_not_offered"),
    "trace": ("GET", "/v2/trace/setting", {}, 501, "not_supported"),
    "a model's trace": ("POST", "/v2/models/colors/trace/setting", {"content": b"{}"}, 501, "not_supported"),
    "logging": ("POST", "/v2/logging", {"content": b"{}"}, 501, "not_supported"),
    "shared memory": ("GET", "/v2/systemsharedmemory/status", {}, 501, "not_supported"),
    "a region": ("POST", "/v2/cudasharedmemory/region/x/register", {"content": b"{}"}, 501, "not_supported"),
    "generate": ("POST", "/v2/models/colors/generate", {"content": b"{}"}, 501, "not_supported"),
    "an index of text": ("POST", "/v2/repository/index", {"content": b"[]"}, 400, "json_invalid"),
    "an index with ready as text": ("POST", "/v2/repository/index", {"json": {"ready": "yes"}}, 400, "bad_request"),
    "no body": ("POST", INFER, {}, 400, "json_invalid"),
    "an image in JSON": ("POST", INFER, {"json": JPEG_IN_JSON}, 400, "tensor_invalid"),
    "NaN": ("POST", PIXELS, {"content": b'{"inputs": [NaN]}'}, 400, "number_not_finite"),
    "an unknown encoding": (
        "POST",
        INFER,
        {"content": b"{}", "headers": {"Content-Encoding": "br"}},
        415,
        "content_encoding_not_supported",
    ),
    "not gzip": ("POST", INFER, {"content": b"{}", "headers": {"Content-Encoding": "gzip"}}, 400, "content_encoding_invalid"),
    "a bomb": (
        "POST",
        INFER,
        {"content": gzip.compress(bytes(65 * 2**20), 1), "headers": {"Content-Encoding": "gzip"}},
        413,
        "body_too_large",
    ),
    "an empty image": ("POST", INFER, {"content": b"", "headers": {HEADER: "0"}}, 400, "image_empty"),
    "text for an image": ("POST", INFER, {"content": b"hello", "headers": {HEADER: "0"}}, 422, "not_an_image"),
    "pixels of another size": ("POST", PIXELS, pixels(np.zeros((1, 12, 15, 3), np.uint8)), 400, "tensor_invalid"),
    "65 images": ("POST", PIXELS, pixels(np.zeros((65, 12, 16, 3), np.uint8)), 400, "tensor_invalid"),
}


@pytest.mark.parametrize(("method", "path", "request_", "status", "code"), REJECTED.values(), ids=REJECTED)
def test_a_request_is_rejected_by_its_code(
    site: Any, method: str, path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    reply = site.client.request(method, path, **request_)
    is_rejected(reply, status, code)
    assert (status == 405) == ("allow" in reply.headers)


def test_the_error_for_an_unknown_encoding_lists_the_supported_ones(site: Any) -> None:
    reply = site.client.post(INFER, content=b"{}", headers={"Content-Encoding": "br"})
    assert reply.headers["accept-encoding"] == "gzip, deflate"


def test_a_duplicate_framing_header_is_rejected(site: Any, photos: list[bytes]) -> None:
    request = images(photos[:1])
    length = request["headers"][HEADER]
    reply = site.client.post(INFER, content=request["content"], headers=[(HEADER, length), (HEADER, length)])
    assert "was sent twice" in is_rejected(reply, 400, "tensor_invalid")


def test_a_body_over_the_limit_is_rejected_by_its_length(site: Any) -> None:
    with site.connect() as connection:
        connection.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


BAD_IMAGES = {
    "text": (b"hello", 422, "not_an_image"),
    "empty": (b"", 400, "image_empty"),
}


@pytest.mark.parametrize(("bad", "status", "code"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_the_error_for_a_bad_image_names_its_position(
    site: Any, photos: list[bytes], bad: bytes, status: int, code: str
) -> None:
    reply = site.client.post(INFER, **images([photos[0], photos[1], bad, photos[2], bad]))
    assert is_rejected(reply, status, code).startswith("image[2]: ")


def test_an_image_over_the_pixel_limit_is_rejected(site: Any) -> None:
    file = io.BytesIO()
    Image.new("1", (8000, 7000)).save(file, "PNG")
    is_rejected(site.client.post(INFER, **images([file.getvalue()])), 413, "image_too_large")


# --- deadlines ---


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "9" * 400])
def test_a_deadline_must_be_milliseconds(site: Any, photos: list[bytes], value: str) -> None:
    request = images(photos[:1])
    request["headers"]["X-Request-Timeout-Ms"] = value
    assert "X-Request-Timeout-Ms" in is_rejected(site.client.post(INFER, **request), 400, "timeout_invalid")


def test_an_answer_before_the_deadline_is_returned(site: Any, photos: list[bytes]) -> None:
    request = images(photos[:1], parameters={"timeout": 60_000_000})
    request["headers"]["X-Request-Timeout-Ms"] = "60000"
    assert site.client.post(INFER, **request).status_code == 200


def is_late(reply: httpx.Response) -> None:
    """Rejected at once, or expired in the queue or during processing."""
    assert (reply.status_code, reply.json()["code"]) in [
        (503, "overloaded"),
        (503, "deadline_exceeded"),
        (504, "deadline_exceeded"),
    ]
    assert "retry-after" in reply.headers


def test_an_answer_that_takes_longer_than_its_deadline_is_rejected(site: Any, photos: list[bytes]) -> None:
    is_late(site.client.post(INFER, **images(photos * 16, parameters={"timeout": 1})))


def test_of_two_deadlines_the_earlier_one_applies(site: Any, photos: list[bytes]) -> None:
    request = images(photos * 16, parameters={"timeout": 60_000_000})
    request["headers"]["X-Request-Timeout-Ms"] = "1"
    is_late(site.client.post(INFER, **request))


# --- statistics ---


def stats(site: Any, path: str = "/v2/models/colors/stats") -> dict[str, Any]:
    [row] = site.client.get(path).json()["model_stats"]
    return dict(row)


def test_every_request_is_counted_under_its_model_and_stage(site: Any, photos: list[bytes]) -> None:
    before, other = stats(site), stats(site, "/v2/models/colors.pixels/versions/1/stats")
    site.client.post(INFER, **images(photos))
    site.client.post(INFER, **images(photos[:1]))
    site.client.post(INFER, content=b"{}")
    after = stats(site)
    grown = {
        stage: after["inference_stats"][stage]["count"] - before["inference_stats"][stage]["count"]
        for stage in after["inference_stats"]
    }
    assert grown == {
        "success": 2,
        "fail": 1,
        "queue": 2,
        "compute_input": 2,
        "compute_infer": 2,
        "compute_output": 2,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["execution_count"] - before["execution_count"] == 5
    assert after["last_inference"] > 1_700_000_000_000
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert stats(site, "/v2/models/colors.pixels/versions/1/stats") == other


def test_the_statistics_of_all_models_list_every_model(site: Any) -> None:
    rows = site.client.get("/v2/models/stats").json()["model_stats"]
    assert [(row["name"], row["version"]) for row in rows] == [("colors", "1"), ("colors.pixels", "1")]


# --- not ready ---


@pytest.fixture(name="broken", scope="module")
def broken_site(artifact_template: Path, serving: Any) -> Iterator[Any]:
    def fail(path: Path) -> Classifier:
        raise ArtifactError(f"{path} is not whole", code="digest_mismatch")

    with serving(artifact_template.parent, open_classifier=fail) as site:
        yield site


def test_a_server_whose_model_failed_is_live_but_not_ready(broken: Any) -> None:
    assert broken.client.get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/colors/ready"):
        reply = broken.client.get(path)
        assert (reply.status_code, reply.headers["retry-after"].isdigit(), reply.json()["ready"]) == (503, True, False)
        assert "is not whole" in reply.json()["error"]


@pytest.mark.parametrize("path", ["", "/config", "/stats", "/infer", "/versions/1"])
def test_requests_to_a_failed_model_get_the_reason(broken: Any, path: str) -> None:
    reply = broken.client.request("POST" if path == "/infer" else "GET", f"/v2/models/colors{path}")
    assert "is not whole" in is_rejected(reply, 503, "not_ready")
    assert int(reply.headers["retry-after"]) >= 1


def test_the_index_lists_a_failed_model(broken: Any) -> None:
    rows = broken.client.post("/v2/repository/index").json()
    assert [(row["name"], row["state"]) for row in rows] == [("colors", "UNAVAILABLE"), ("colors.pixels", "UNAVAILABLE")]
    assert broken.client.post("/v2/repository/index", json={"ready": True}).json() == []
    assert broken.client.get("/v2/models/stats").json() == {"model_stats": []}


def test_a_ready_server_reports_ready(site: Any) -> None:
    assert site.client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert site.client.get("/v2/models/colors.pixels/ready").json() == {"name": "colors.pixels", "ready": True}


# --- docs/http.md ---


PAGE = (
    (Path(__file__).resolve().parents[4] / "docs" / "http.md").read_text(encoding="utf-8").partition("## The Open Inference")[2]
)


def test_the_documentation_names_every_route() -> None:
    paths = {route.path for route in V2(None, None, None).routes()}  # type: ignore[arg-type]
    paths = {path.replace("/versions/{version}", "") for path in paths}
    paths -= {
        "/v2/repository/models/{model}/load",
        "/v2/repository/models/{model}/unload",
        "/v2/models/{model}/generate_stream",
    }
    paths = {"/v2/systemsharedmemory/..." if "sharedmemory" in path else path for path in paths}
    assert {path for path in paths if f"{path}`" not in PAGE} == set()


def test_the_documentation_names_every_code() -> None:
    codes = set()
    for path in Path(serve.__path__[0], "http", "open_inference").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            values = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            values += call.args[1:2] if isinstance(call.func, ast.Name) and call.func.id == "bad" else []
            values += call.args[2:3] if isinstance(call.func, ast.Name) and call.func.id == "error_reply" else []
            codes |= {value.value for value in values if isinstance(value, ast.Constant)}
    assert len(codes) > 8
    assert {code for code in codes - {"model_output_not_finite"} if f"`{code}`" not in PAGE} == set()


def test_the_python_example_of_the_documentation_runs(site: Any, photos: list[bytes], tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    code = code.replace("127.0.0.1:8000", httpx.URL(site.url).netloc.decode()).replace("flowers", "colors")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "0:red" in done.stdout, done.stderr
