"""One log record for each answer: what was asked, what came of it, how long it took. No prompts."""

import logging
import time
from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsa_api.tally import Tally
from nsa_serve.errors import NsaServeError
from nsa_serve.logs import request_id

logger = logging.getLogger(__name__)

_QUIET = frozenset({"/health", "/health/live", "/health/ready", "/ping", "/metrics", "/load"})
"""Asked every few seconds by machines."""
_TRACE_HEADERS = (b"traceparent", b"tracestate")


@dataclass(slots=True)
class Exchange:
    """What is known of the request that is being answered."""

    trace_headers: Mapping[str, str]
    """W3C's, as far as the client sent them."""
    fields: dict[str, object] = field(default_factory=dict)
    """What the route adds to the record."""

    def add(self, tally: Tally, error: BaseException | None) -> None:
        """Tell of a generation that came to its end."""
        self.fields |= {
            "completion_id": tally.completion_id,
            "prompt_tokens": tally.prompt_tokens,
            "cached_tokens": tally.cached_tokens,
            "completion_tokens": tally.completion_tokens,
            "finish_reasons": ",".join(tally.finish_reasons),
        }
        if tally.times:
            first = min(times.arrived for times in tally.times.values())
            queued = max(times.first_scheduled - times.arrived for times in tally.times.values())
            first_token = min(times.first_token for times in tally.times.values())
            self.fields["queue_seconds"] = round(queued, 4)
            self.fields["first_token_seconds"] = round(first_token - first, 4)
        if error is not None:
            ours = isinstance(error, NsaServeError)
            self.fields["ended_by"] = type(error).__name__ if ours else "client"


_exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange | None:
    """That of the request that is being answered here, if it came over HTTP."""
    return _exchange.get()


class AccessLog:
    """Outermost layer: every answer is a record, refusals of other layers included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499
        began = time.perf_counter()
        headers = {
            k.decode(): v.decode("latin-1") for k, v in scope["headers"] if k in _TRACE_HEADERS
        }
        exchange = Exchange(headers)
        request_id.set(None)
        _exchange.set(exchange)

        def watched(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if scope["path"] not in _QUIET:
                _log(scope, status, time.perf_counter() - began, exchange.fields)


def _log(scope: Scope, status: int, seconds: float, fields: Mapping[str, object]) -> None:
    """The path is that of the route: what a client invents is not written to the log."""
    route = scope.get("route")
    path = route.path if route is not None else "(no route)"
    method = scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 8 else "?"
    logger.info(
        "%s %s %d",
        method,
        path,
        status,
        extra={
            "fields": {
                "method": method,
                "route": path,
                "status": status,
                "seconds": round(seconds, 4),
                **fields,
            },
            "said": ("method", "route", "status"),
        },
    )
