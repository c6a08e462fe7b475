"""OpenTelemetry traces of requests.

OpenTelemetry's own environment variables configure what is sent, and where (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER and so on). A request's `traceparent` makes its span a child of the caller's. Imported only if tracing is
enabled; needs the extra `otel`.
"""

import os
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from starlette.types import ASGIApp

UNTRACED = "healthz,readyz,metrics,v2/health/live,v2/health/ready"
"""Probes and scrapes, which would only add noise every few seconds."""


def traced(app: ASGIApp, exporter: SpanExporter | None = None) -> tuple[ASGIApp, TracerProvider]:
    """Wrap an application so that every request is a span.

    Args:
        app: the application.
        exporter: receives the spans; by default the HTTP exporter that the environment variables configure.

    Returns:
        The wrapped application, and the provider; its shutdown sends the last spans.
    """
    os.environ.setdefault("OTEL_SERVICE_NAME", "edgeline")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    # Spans of each receive and send would add three to every request.
    options: dict[str, Any] = {"tracer_provider": provider, "excluded_urls": UNTRACED, "exclude_spans": ["receive", "send"]}
    return OpenTelemetryMiddleware(app, **options), provider
