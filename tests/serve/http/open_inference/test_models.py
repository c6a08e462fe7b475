"""Several models and versions behind the V2 routes, some not ready; and the arithmetic of their statistics."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import DeadlineError, EdgelineError, InputError
from edgeline.serve.http.middleware import RequestMiddleware
from edgeline.serve.http.open_inference.models import Answer
from edgeline.serve.http.open_inference.routes import V2
from edgeline.serve.http.open_inference.statistics import Statistics
from edgeline.serve.http.request_body import Budget
from edgeline.serve.http.responses import HANDLERS

PNG_HEADERS = {"Inference-Header-Content-Length": "0", "Accept": "application/json"}


class Several:
    """Loaded and missing models: birds 1 and 3; fish is not loaded yet. Each returns its version in its responses."""

    def __init__(self, birds: dict[int, Classifier]) -> None:
        self.birds = birds
        self.received: list[tuple[bytes | np.ndarray, float | None]] = []
        self.error: EdgelineError | None = None

    def names(self) -> list[str]:
        return ["birds", "fish"]

    def versions(self, name: str) -> list[int]:
        return sorted(self.birds) if name == "birds" else []

    def get(self, name: str, version: int | None) -> Classifier | None:
        return self.birds.get(version or max(self.birds)) if name == "birds" else None

    def index(self) -> list[dict[str, str]]:
        ready = [{"name": "birds", "version": str(number), "state": "READY", "reason": ""} for number in sorted(self.birds)]
        return [*ready, {"name": "fish", "version": "7", "state": "UNAVAILABLE", "reason": "its golden samples failed"}]

    async def answer(self, classifier: Classifier, item: bytes | np.ndarray, deadline_s: float | None) -> Answer:
        self.received.append((item, deadline_s))
        if self.error is not None:
            raise self.error
        row_K = np.full(4, classifier.manifest.version, np.float32)
        return Answer(row_K, row_K, queue_ns=5, decode_ns=3, infer_ns=2, batch_size=2)


@pytest.fixture(name="models")
def several_models(make_artifact: Any) -> Several:
    return Several({number: Classifier.open(make_artifact("birds", number), verify=False) for number in (1, 3)})


@pytest.fixture(name="client")
def in_process_client(models: Several) -> Any:
    app = Starlette(
        routes=V2(models, lambda within_s: None, Budget(2**30)).routes(),
        middleware=[Middleware(RequestMiddleware)],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False

    def ask(method: str, path: str, **request: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(send())

    return ask


VERSIONS = {
    "the newest by default": ("", "3"),
    "an older one": ("/versions/1", "1"),
    "the newest by name": ("/versions/3", "3"),
}


@pytest.mark.parametrize(("path", "version"), VERSIONS.values(), ids=VERSIONS)
def test_a_request_is_answered_by_its_version(client: Any, path: str, version: str) -> None:
    for model in ("birds", "birds.pixels"):
        body = b"file" if model == "birds" else bytes(12 * 16 * 3)
        reply = client("POST", f"/v2/models/{model}{path}/infer", content=body, headers=PNG_HEADERS).json()
        assert (reply["model_name"], reply["model_version"]) == (model, version)
        assert reply["outputs"][0]["data"] == [float(version)] * 4


def test_metadata_names_the_versions_that_are_served(client: Any) -> None:
    assert client("GET", "/v2/models/birds").json()["versions"] == ["1", "3"]
    assert client("GET", "/v2/models/birds/versions/1").json()["versions"] == ["1"]
    assert client("GET", "/v2/models/birds/versions/1").json()["properties"]["artifact"] == "birds/1"


def test_the_404_for_a_version_lists_the_served_ones(client: Any) -> None:
    reply = client("GET", "/v2/models/birds/versions/2/config")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert "1, 3" in reply.json()["error"]


@pytest.mark.parametrize("path", ["/v2/models/fish", "/v2/models/fish/versions/7", "/v2/models/fish.pixels/stats"])
def test_a_model_that_is_not_ready_is_503_with_its_reason(client: Any, path: str) -> None:
    reply = client("GET", path)
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"].isdigit()) == (503, "not_ready", True)
    assert "its golden samples failed" in reply.json()["error"]


def test_the_server_is_ready_when_every_model_is(client: Any, models: Several) -> None:
    reply = client("GET", "/v2/health/ready")
    assert (reply.status_code, reply.json()["error"]) == (503, "fish: its golden samples failed")
    models.names = lambda: ["birds"]  # type: ignore[method-assign]
    assert client("GET", "/v2/health/ready").status_code == 200
    models.names = list  # type: ignore[method-assign]
    assert client("GET", "/v2/health/ready").json()["error"] == "no model is served"


def test_the_index_lists_each_version_under_both_names(client: Any) -> None:
    rows = client("POST", "/v2/repository/index", json={"ready": True}).json()
    assert [(row["name"], row["version"]) for row in rows] == [
        ("birds", "1"),
        ("birds.pixels", "1"),
        ("birds", "3"),
        ("birds.pixels", "3"),
    ]
    states = {row["name"]: row["state"] for row in client("POST", "/v2/repository/index").json()}
    assert states["fish.pixels"] == "UNAVAILABLE"


def test_each_version_has_its_own_statistics(client: Any) -> None:
    for path in ("", "/versions/1", "/versions/3"):
        client("POST", f"/v2/models/birds{path}/infer", content=b"file", headers=PNG_HEADERS)
    rows = client("GET", "/v2/models/birds/stats").json()["model_stats"]
    assert [(row["version"], row["inference_count"]) for row in rows] == [("1", 1), ("3", 2)]
    [row] = client("GET", "/v2/models/birds/versions/1/stats").json()["model_stats"]
    assert (row["version"], row["inference_count"]) == ("1", 1)
    assert len(client("GET", "/v2/models/stats").json()["model_stats"]) == 4


def test_the_item_and_the_deadline_are_passed_to_the_models(client: Any, models: Several) -> None:
    client("POST", "/v2/models/birds/infer", content=b"file", headers={**PNG_HEADERS, "X-Request-Timeout-Ms": "250"})
    pixels = np.arange(12 * 16 * 3, dtype=np.uint8)
    client("POST", "/v2/models/birds.pixels/infer", content=pixels.tobytes(), headers=PNG_HEADERS)
    assert models.received[0] == (b"file", 0.25)
    item, deadline_s = models.received[1]
    assert deadline_s is None
    np.testing.assert_array_equal(item, pixels.reshape(12, 16, 3), strict=True)


ERRORS = {
    "a bad image": (InputError("no", code="not_an_image"), 400, "image[0]: no"),
    "too late": (DeadlineError(started=True), 504, str(DeadlineError(started=True))),
}


@pytest.mark.parametrize(("error", "status", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_of_the_models_is_returned(
    client: Any, models: Several, error: EdgelineError, status: int, message: str
) -> None:
    models.error = error
    reply = client("POST", "/v2/models/birds/infer", content=b"file", headers=PNG_HEADERS)
    assert (reply.status_code, reply.json()["error"]) == (status, message)
    [row] = client("GET", "/v2/models/birds/versions/3/stats").json()["model_stats"]
    assert (row["inference_stats"]["fail"]["count"], row["inference_count"]) == (1, 0)


def test_images_of_one_run_count_as_one_run_and_the_slowest_image_counts() -> None:
    def answer(queue_ns: int, batch_size: int) -> Answer:
        return Answer(np.zeros(2), np.zeros(2), queue_ns, decode_ns=10, infer_ns=100, batch_size=batch_size)

    statistics = Statistics()
    statistics.succeeded([answer(1, 2), answer(7, 2)], took_ns=1000, output_ns=5)
    statistics.succeeded([answer(3, 1)], took_ns=500, output_ns=5)
    found = statistics.describe("m", 4)
    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("m", "4", 3, 2)
    assert found["inference_stats"]["queue"] == {"count": 2, "ns": 10}
    assert found["inference_stats"]["success"] == {"count": 2, "ns": 1500}
    assert [(row["batch_size"], row["compute_infer"]) for row in found["batch_stats"]] == [
        (1, {"count": 1, "ns": 100}),
        (2, {"count": 1, "ns": 100}),
    ]
    assert json.loads(json.dumps(found)) == found


def test_no_counter_ever_decreases() -> None:
    statistics, before = Statistics(), Statistics().describe("m", 1)
    for batch_size in (3, 1, 2, 3, 3, 2, 8):
        row = np.zeros(2)
        statistics.succeeded([Answer(row, row, 1, 1, 1, batch_size)], took_ns=1, output_ns=1)
        after = statistics.describe("m", 1)
        assert after["execution_count"] >= before["execution_count"]
        assert after["inference_count"] == before["inference_count"] + 1
        before = after
