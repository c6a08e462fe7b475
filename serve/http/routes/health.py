"""Health, readiness, metrics and drift of a server.

GET /healthz    200 while the process is running
GET /readyz     200 while every model is loaded and verified, else 503 with the reason
GET /metrics    counters for Prometheus
GET /drift      drift statistics of a model, for `edgeline drift`

Monitoring routes are left out, or get a socket of their own, where other machines can reach the server.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeline.serve.errors import InputError
from edgeline.serve.http.responses import error_reply
from edgeline.serve.http.routes.predict import identity
from edgeline.serve.http.service import Service

NO_STORE = {"Cache-Control": "no-store"}


class HealthRoutes:
    """Routes that report on the server itself."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def probes(self) -> list[Route]:
        """Routes for orchestrators."""
        return [Route("/healthz", self.healthz), Route("/readyz", self.readyz)]

    def statistics(self) -> list[Route]:
        """Routes for monitoring, which should not be reachable from other machines."""
        return [Route("/metrics", self.metrics), Route("/drift", self.drift)]

    async def healthz(self, request: Request) -> Response:
        """Return 200: the process and its event loop are running."""
        return JSONResponse({"status": "alive"}, headers=NO_STORE)

    async def readyz(self, request: Request) -> Response:
        """Return 200 with the result of the self-test, or 503 with the reason."""
        models = self.service.models
        if self.service.stopping:
            return error_reply(request, 503, "stopping", "the server is shutting down; it only completes accepted requests")
        classifier = models.current()
        if classifier is None or not models.ready:
            raise self.service.not_ready()
        slot = models.slots[0]
        body: dict[str, Any] = {"status": "ready", **identity(classifier)}
        body["self_test"] = asdict(classifier.self_test) if classifier.self_test else None
        body["previous"] = slot.previous.manifest.version if slot.previous else None
        body["rolled_back_from"] = slot.rolled_back_from
        body["rejected"] = asdict(slot.rejected_version) if slot.rejected_version else None
        if len(models.slots) > 1 or models.challenger is not None:
            body["index"] = models.index()
        return JSONResponse(body, headers=NO_STORE)

    async def metrics(self, request: Request) -> Response:
        """Return all counters in Prometheus' text format."""
        self.service.metrics.flush()
        data = await asyncio.to_thread(generate_latest, self.service.metrics.registry)
        return Response(data, headers={"Content-Type": CONTENT_TYPE_LATEST, **NO_STORE})

    async def drift(self, request: Request) -> Response:
        """Return a model's drift statistics, as a snapshot for `edgeline drift`."""
        drift = self.service.drift
        if drift is None:
            raise InputError("drift statistics are not collected; start the server with --drift", code="not_found")
        classifier = self.service.classifier(request.query_params.get("model"))
        return JSONResponse(await asyncio.to_thread(drift.snapshot, classifier), headers=NO_STORE)
