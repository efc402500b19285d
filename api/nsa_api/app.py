"""Builds the application: its layers from the outside in, and its routes."""

from fastapi import FastAPI, Request
from starlette.responses import Response

from nsa_api.access import AccessLog
from nsa_api.auth import Authentication
from nsa_api.batches.worker import open_worker
from nsa_api.body import BodyLimits
from nsa_api.disconnect import ClientGone
from nsa_api.engine import Engine
from nsa_api.errors import UnexpectedErrors, install_error_handlers
from nsa_api.http_metrics import HttpMetrics
from nsa_api.limits import HeadLimits
from nsa_api.live import LiveFigures, LiveView
from nsa_api.openapi import ERRORS, install_openapi
from nsa_api.routes import batches, chat, completions, files, health, live, models, page
from nsa_api.settings import ApiSettings
from nsa_api.state import ServerState
from nsa_api.tracing import otlp_tracer
from nsa_serve import __version__


def create_app(engine: Engine | None, settings: ApiSettings) -> FastAPI:
    """The API over `engine`. Without one it answers 503 until `app.state.server.attach`.

    Raises `BatchError` if the batch folder cannot be had, `ConfigError` if spans are asked for
    and the extra `otel` is missing.
    """
    app = FastAPI(
        title="nsa-serve",
        version=__version__,
        description="OpenAI's completions over a Native Sparse Attention engine.",
        responses=ERRORS,
        docs_url=None,  # FastAPI's own take their scripts from elsewhere
        redoc_url=None,
    )
    state = app.state.server = ServerState(settings)
    if settings.otlp_traces_endpoint is not None:
        state.tracer = otlp_tracer(settings.otlp_traces_endpoint)
    if engine is not None:
        state.attach(engine)
    app.state.batches = open_worker(app, settings)
    app.state.live = LiveView(state, hide_ids=len(settings.api_keys) > 1)
    routers = [
        module.router for module in (completions, chat, models, files, batches, health, live, page)
    ]
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    install_error_handlers(app, routes)
    app.add_exception_handler(ClientGone, _nobody_waits)
    for router in routers:
        app.include_router(router)
    install_openapi(
        app,
        (live.RequestSelection, live.Unavailable, LiveFigures),
        with_keys=bool(settings.api_keys),
    )
    # The layer that is added last is the outermost.
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(BodyLimits, settings=settings)
    app.add_middleware(Authentication, api_keys=settings.api_keys)
    app.add_middleware(HeadLimits, settings=settings)
    app.add_middleware(HttpMetrics, registry=state.metrics.registry)
    app.add_middleware(AccessLog)
    return app


async def _nobody_waits(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
