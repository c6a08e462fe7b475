"""Traces of requests by OpenTelemetry, for a server that is told to send them.

What is sent, and where to, is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER and so on). A request's `traceparent` makes its span a child of the caller's. Only a server that is told to
imports this, and with it the extra `otel`.
"""

import os
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from starlette.types import ASGIApp

QUIET = "healthz,readyz,metrics,v2/health/live,v2/health/ready"
"""Probes and scrapes, of which nobody wants a trace every few seconds."""


def traced(app: ASGIApp, exporter: SpanExporter | None = None) -> tuple[ASGIApp, TracerProvider]:
    """Wrap an application so that every request is a span.

    Args:
        app: what answers.
        exporter: where spans go; by default over HTTP to where OpenTelemetry's variables say.

    Returns:
        The application, and what to shut down at the end, so that the last spans are sent.
    """
    os.environ.setdefault("OTEL_SERVICE_NAME", "edgeline")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    # Its own spans of each receive and send would be three more a request.
    options: dict[str, Any] = {"tracer_provider": provider, "excluded_urls": QUIET, "exclude_spans": ["receive", "send"]}
    return OpenTelemetryMiddleware(app, **options), provider
