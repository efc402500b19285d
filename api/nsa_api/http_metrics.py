"""Counts HTTP answers by route template, so that invented paths make no new series."""

from collections.abc import Awaitable

from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsa_api.metrics import PREFIX

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """Outermost layer: every answer is counted once, refusals of other layers included."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        self._answers = Counter(
            f"{PREFIX}http_requests",
            "HTTP answers.",
            ["method", "handler", "status"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        def counted(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                handler = route.path if route is not None else "none"
                self._answers.labels(method, handler, str(message["status"])).inc()
            return send(message)

        await self.app(scope, receive, counted)
