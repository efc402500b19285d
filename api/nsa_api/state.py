"""What the routes share: the engine once it is loaded, the settings, and who is being served."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from nsa_api.access import current_exchange
from nsa_api.engine import Engine
from nsa_api.entrance import Entrance
from nsa_api.errors import ApiError, unavailable
from nsa_api.metrics import Metrics
from nsa_api.settings import ApiSettings
from nsa_api.tally import Tally
from nsa_api.tracing import RequestTracer


@dataclass(slots=True)
class ServerState:
    """Mutable state of one server, changed only on its event loop."""

    settings: ApiSettings
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    num_in_flight: int = 0
    tracer: RequestTracer | None = None
    entrance: Entrance = field(default_factory=Entrance)
    created: int = field(default_factory=lambda: int(time.time()))
    _engine: Engine | None = None
    _busy_since: float = 0.0
    _main_name: str = ""

    def attach(self, engine: Engine) -> None:
        """Start serving from `engine`."""
        self._engine = engine
        names = self.settings.served_model_names or (engine.info.model_name,)
        self.metrics.attach(engine, names[0], lambda: self.not_ready() is None)
        self._main_name = names[0]

    def not_ready(self) -> str | None:
        """Why requests are not served now; None if they are."""
        if self.draining:
            return "draining"
        if self._engine is None:
            return "starting"
        if not self._engine.alive:
            return "engine_dead"
        waited = time.monotonic() - max(self._engine.last_step_time, self._busy_since)
        return "stuck" if self.num_in_flight and waited > self.settings.stuck_timeout else None

    def engine(self) -> Engine:
        """The engine; raises a 503 while it cannot take requests."""
        reason = self.not_ready()
        if self._engine is None or reason in ("draining", "engine_dead"):
            text = "The server is shutting down" if self.draining else "The engine is not running"
            if reason == "starting":
                text = "The model is still loading"
            raise unavailable(text, code=reason or "starting")
        return self._engine

    def model_names(self) -> tuple[str, ...]:
        """Names that requests may use for the model; the first is its main one."""
        return self.settings.served_model_names or (self.engine().info.model_name,)

    def check_model(self, name: str) -> None:
        """Raise a 404 for a model that is not served."""
        if name not in self.model_names():
            text = f"The model {name[:64]!r} does not exist"
            raise ApiError(404, text, code="model_not_found", param="model")

    @contextmanager
    def serving(self, tally: Tally) -> Iterator[None]:
        """Count a request from here to its end, however it ends."""
        if self.num_in_flight == 0:
            self._busy_since = time.monotonic()
        self.num_in_flight += 1
        started = time.time()
        try:
            yield
        except BaseException as error:
            self.metrics.on_request_failed(tally, error)
            self._tell(tally, started, error)
            raise
        else:
            self.metrics.on_request_done(tally)
            self._tell(tally, started, None)
        finally:
            self.num_in_flight -= 1

    def _tell(self, tally: Tally, started: float, error: BaseException | None) -> None:
        """Let the log and the trace know of a request that is over."""
        exchange = current_exchange()
        if exchange is not None:
            exchange.add(tally, error)
        if self.tracer is not None:
            self.tracer.on_request(
                tally,
                model_name=self._main_name,
                started=started,
                error=error,
                trace_headers=exchange.trace_headers if exchange is not None else {},
            )


def server_state(request: Request) -> ServerState:
    """The state of the server that took this request."""
    return cast(ServerState, request.app.state.server)
