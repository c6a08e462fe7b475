"""Assemble the HTTP application from its routes and middleware.

    app = create_app(service, AppOptions(store=Path("artifacts/store")))

    /predict                        `serve.http.routes.predict`
    /healthz /readyz /metrics       `serve.http.routes.health`
    /drift                          `serve.http.routes.health`
    / /model                        `serve.http.routes.page`
    /artifacts                      `serve.http.routes.downloads`
    /v2                             `serve.http.open_inference.routes`
    /openapi.json                   `serve.http.openapi.document`

To add a route: write its handler in a class of `routes/`, list it in that class's routes (a new module in `_routes`), and
describe it in `openapi/document.py` and `docs/http.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import Scope

from edgeline.serve.http.auth import TokenMiddleware, Tokens
from edgeline.serve.http.middleware import RequestMiddleware
from edgeline.serve.http.observability.logs import log_request
from edgeline.serve.http.open_inference.models import Served
from edgeline.serve.http.open_inference.routes import V2
from edgeline.serve.http.openapi.document import openapi_route
from edgeline.serve.http.responses import HANDLERS
from edgeline.serve.http.routes.downloads import Downloads
from edgeline.serve.http.routes.health import HealthRoutes
from edgeline.serve.http.routes.page import page_routes
from edgeline.serve.http.routes.predict import PredictRoutes
from edgeline.serve.http.service import Service

KEEPS_PHOTOS = "Photos that the model is unsure of are kept on this server, without their metadata, to be labeled by people."


@dataclass(frozen=True, kw_only=True, slots=True)
class AppOptions:
    """Which parts an application has."""

    store: Path | None = None
    """The store whose artifacts can be downloaded; None offers no downloads."""
    metrics: bool = True
    """Whether `/metrics` and `/drift` are routes; not if other machines can reach them."""
    tokens: Tokens | None = None
    """Bearer tokens, one of which every request must carry, except for health checks and the page's files."""
    cors: Sequence[str] = ()
    """Origins whose pages may call the server from a browser."""
    access_log: bool = False
    """Whether each request is logged."""
    keeps_photos: bool = False
    """Whether photos of requests are kept, which the page then states."""


def create_app(service: Service, options: AppOptions = AppOptions()) -> Starlette:
    """Build the application. The caller starts the service's models when the socket is open."""
    routes = _routes(service, options)
    patterns = {route.path for route in routes}

    def ended(scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        pattern = route.path if isinstance(route, Route) and route.path in patterns else "other"
        service.metrics.ended(pattern, scope["method"], status, seconds)
        if (code := scope["state"].get("code")) is not None:
            service.count_rejected(code)
        if options.access_log:
            log_request(scope, pattern, status, seconds)

    middleware = [Middleware(RequestMiddleware, ended=ended)]
    if options.cors:
        methods = ["GET", "POST", "PUT"]
        middleware.append(Middleware(CORSMiddleware, allow_origins=options.cors, allow_methods=methods, allow_headers=["*"]))
    if options.tokens is not None:
        middleware.append(Middleware(TokenMiddleware, tokens=options.tokens))
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # one resource, one address
    return app


def metrics_app(service: Service) -> Starlette:
    """Build an application with `/metrics` and `/drift` alone."""
    routes = HealthRoutes(service).statistics()
    return Starlette(routes=routes, middleware=[Middleware(RequestMiddleware)], exception_handlers=HANDLERS)


def _routes(service: Service, options: AppOptions) -> list[Route]:
    health = HealthRoutes(service)
    routes = [*PredictRoutes(service).routes(), *health.probes()]
    if options.metrics:
        routes += health.statistics()
    routes += page_routes(service.classifier, [KEEPS_PHOTOS] if options.keeps_photos else [])
    models = Served(service.models, service.answer, service.limits.deadline_s)
    routes += V2(models, service.admit, service.budget).routes()
    if options.store is not None:
        routes += Downloads(options.store).routes()
    routes.append(openapi_route(routes, service.limits.images, secured=options.tokens is not None))
    return routes
