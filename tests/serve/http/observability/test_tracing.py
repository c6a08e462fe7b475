"""Traces: a span for each request, as a child of the caller's, and none for probes."""

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import ASGIApp

from edgeline.serve.http.observability.tracing import traced

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_request_is_a_child_span_of_its_caller(artifact_template: Path, serving: Any) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    exporter, providers = InMemorySpanExporter(), []

    def wrap_app(app: ASGIApp) -> ASGIApp:
        app, provider = traced(app, exporter)
        providers.append(provider)
        return app

    with serving(artifact_template, wrap_app=wrap_app) as site:
        assert site.client.post("/predict", content=photo, headers={"traceparent": PARENT}).status_code == 200
        assert site.client.post("/predict", content=b"no image").status_code == 422
        for path in ("/healthz", "/readyz", "/metrics"):
            site.client.get(path)
    providers[0].shutdown()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["POST /predict", "POST /predict"]
    assert spans[0].parent is not None
    assert f"{spans[0].parent.span_id:016x}" == "b7ad6b7169203331"
    assert f"{spans[0].context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert spans[0].resource.attributes["service.name"] == "edgeline"
    attributes = str([dict(span.attributes or {}) for span in spans])
    assert "200" in attributes
    assert "422" in attributes
