"""Load shedding sends what the application would have sent, and passes on everything else."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.app import create_app
from edgeline.serve.http.load_shedding import LoadShedding
from edgeline.serve.http.service import Service, ServingLimits
from edgeline.serve.inference.repository import ModelRepository
from edgeline.serve.inference.scheduler import Engine
from edgeline.serve.inference.slot import Loading
from tests.support.loading import TestLoader

IDS = {"x-request-id": "abc"}


@pytest.fixture
def service(artifact_template: Path) -> Service:
    """A service whose queue is always full."""
    models = ModelRepository([artifact_template], TestLoader())
    models.slots[0].accept(Classifier.open(artifact_template, threads=1, verify=False))
    return Service(models, Engine(queue_limit=0), ServingLimits())


def ask(app: ASGIApp, method: str, path: str) -> httpx.Response:
    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.request(method, path, headers=IDS, content=b"photo")

    return asyncio.run(scenario())


def without_random_parts(headers: httpx.Headers) -> dict[str, str]:
    assert int(headers["retry-after"]) >= 0
    return {name: value for name, value in headers.items() if name != "retry-after"}


def test_load_shedding_sends_the_same_error_as_the_application(service: Service) -> None:
    app = create_app(service)
    inside, outside = ask(app, "POST", "/predict"), ask(LoadShedding(app, service), "POST", "/predict")
    assert (outside.status_code, outside.json()) == (inside.status_code, inside.json()) == (503, outside.json())
    assert outside.json() == {"error": outside.json()["error"], "code": "overloaded", "request_id": "abc"}
    assert without_random_parts(outside.headers) == without_random_parts(inside.headers)
    assert service.engine.stats.rejected == 2
    counted = service.metrics.registry.get_sample_value(
        "edgeline_requests_total", {"route": "/predict", "method": "POST", "status": "503"}
    )
    assert counted == 2


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/healthz", 200), ("GET", "/predict", 405), ("POST", "/x", 404)]
)
def test_other_requests_reach_the_application(service: Service, method: str, path: str, status: int) -> None:
    assert ask(LoadShedding(create_app(service), service), method, path).status_code == status


def test_an_engine_with_room_accepts_the_request(service: Service) -> None:
    service.engine.queue_limit = 1
    service.models.slots[0].state = Loading()
    assert ask(LoadShedding(create_app(service), service), "POST", "/predict").json()["code"] == "loading"
