"""The metrics match what happened."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families


def values(site: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = site.client.get("/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(found: dict[Any, float], name: str, /, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def photo(artifact_template: Path) -> bytes:
    return (artifact_template / "golden" / "0.jpg").read_bytes()


def test_counters_match_the_requests(artifact_template: Path, photo: bytes, serving: Any) -> None:
    with serving(artifact_template) as site:
        for _ in range(7):
            site.client.post("/predict", content=photo)
        for _ in range(3):
            site.client.post("/predict", content=b"not an image")
        site.client.post("/predict", files=[("f", ("a", photo)), ("f", ("b", photo)), ("f", ("c", b"x"))])
        site.client.get("/nowhere/at/all")
        found = values(site)
    ok = {"route": "/predict", "method": "POST"}
    assert value(found, "edgeline_requests_total", status="200", **ok) == 8
    assert value(found, "edgeline_requests_total", status="422", **ok) == 3
    assert value(found, "edgeline_requests_total", route="other", method="GET", status="404") == 1
    assert value(found, "edgeline_request_seconds_count", route="/predict") == 11
    assert value(found, "edgeline_images_total") == 7 + 3 + 3
    assert value(found, "edgeline_decode_seconds_count") == 9
    assert value(found, "edgeline_batch_size_sum") == 9
    assert value(found, "edgeline_infer_seconds_count") == value(found, "edgeline_runs_total")
    assert value(found, "edgeline_ready") == 1
    assert value(found, "edgeline_model_info", name="colors", version="1", variant="onnx-fp32", role="current") == 1
    assert value(found, "edgeline_connections") >= 1


def test_clients_cannot_create_labels(artifact_template: Path, serving: Any) -> None:
    with serving(artifact_template) as site:
        site.client.get("/healthz")
        before = {name for name in values(site) if name[0] == "edgeline_requests_total"}
        for index in range(20):
            site.client.request("PROPFIND", f"/no/{index}")
            site.client.get(f"/healthz?x={index}")
        after = {name for name in values(site) if name[0] == "edgeline_requests_total"}
    assert len(after - before) <= 2


def test_rejected_requests_are_counted_by_their_code(artifact_template: Path, serving: Any) -> None:
    with serving(artifact_template) as site:
        site.raw(b"nonsense\r\n\r\n")
        site.raw(b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(2):
            site.client.post("/predict", content=b"not an image")
        site.client.post("/predict", params={"top_k": "0"}, content=b"")
        found = values(site)
    assert value(found, "edgeline_rejected_total", reason="request_malformed") == 1
    assert value(found, "edgeline_rejected_total", reason="uri_too_long") == 1
    assert value(found, "edgeline_rejected_total", reason="not_an_image") == 2
    assert value(found, "edgeline_rejected_total", reason="top_k_invalid") == 1


def test_metrics_can_be_left_out(artifact_template: Path, serving: Any) -> None:
    with serving(artifact_template, metrics=False) as site:
        assert site.client.get("/metrics").status_code == 404
