"""Whether the server is alive, ready and busy.

Probes may use HEAD: balancers do, and load generators before they scrape.
"""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from nsa_api.errors import unavailable
from nsa_api.openapi import documented, documented_as
from nsa_api.responses import HealthStatus, ServerLoad, Version
from nsa_api.routes.common import json_response
from nsa_api.state import server_state
from nsa_serve import __version__

router = APIRouter()

_NOT_READY = {
    "starting": "The model is still loading",
    "draining": "The server is shutting down",
    "engine_dead": "The engine is not running",
    "stuck": "Work is waiting but no step has finished for too long",
}


@router.get("/health", responses=documented(HealthStatus))
@router.head("/health", include_in_schema=False)
@router.get("/health/live", responses=documented(HealthStatus))
@router.head("/health/live", include_in_schema=False)
@router.get("/ping", responses=documented(HealthStatus))
@router.head("/ping", include_in_schema=False)
@router.post("/ping", responses=documented(HealthStatus))
async def live() -> Response:
    """The process answers, whatever the engine does."""
    return json_response(HealthStatus("ok"))


@router.get("/health/ready", responses=documented(HealthStatus))
@router.head("/health/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    """Requests are served: the model is loaded and, if work is pending, steps go on."""
    reason = server_state(request).not_ready()
    if reason is not None:
        raise unavailable(_NOT_READY[reason], code=reason)
    return json_response(HealthStatus("ready"))


@router.get("/version", responses=documented(Version))
async def version() -> Response:
    """Of nsa-serve."""
    return json_response(Version(__version__))


@router.get("/load", responses=documented(ServerLoad))
async def load(request: Request) -> Response:
    """Requests being served now."""
    return json_response(ServerLoad(server_state(request).num_in_flight))


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented_as("text/plain", "Prometheus' text format"),
)
@router.head("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    body = generate_latest(server_state(request).metrics.registry)
    return Response(body, media_type=CONTENT_TYPE_LATEST)
