"""One OpenTelemetry span for each request, with the times of its queue, prefill and decode.

Nothing of OpenTelemetry is imported unless an endpoint is given; the extra `otel` brings it.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nsa_api.tally import Tally
from nsa_serve.errors import ConfigError, NsaServeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_HELP = "otlp_traces_endpoint needs the extra otel: pip install 'nsa-serve[otel]'"


class RequestTracer:
    """Makes spans after the fact, of the engine's own times."""

    def __init__(self, exporter: "SpanExporter") -> None:
        """Spans go to `exporter` in the background. Raises ConfigError without the extra."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ConfigError(_HELP) from None
        resource = Resource.create({"service.name": "nsa-serve"})
        # Spans are flushed by `close`; an exit handler would wait for a collector that is gone.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nsa_serve")
        self._propagator = TraceContextTextMapPropagator()

    def on_request(
        self,
        tally: Tally,
        *,
        model_name: str,
        started: float,
        error: BaseException | None,
        trace_headers: Mapping[str, str],
    ) -> None:
        """A request that `started` then, in seconds since the epoch, is over.

        Without an error it came to its end; `trace_headers` name the span that it is part of.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            "generate",
            context=self._propagator.extract(trace_headers),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(started),
            attributes={"gen_ai.response.model": model_name, **_attributes(tally)},
        )
        if isinstance(error, NsaServeError):
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        elif error is not None:
            span.set_attribute("nsa_serve.aborted", True)
        span.end(_nanoseconds(time.time()))

    def close(self) -> None:
        """Send what was not sent yet; waits a few seconds at most."""
        self._provider.force_flush(2000)
        self._provider.shutdown()


def otlp_tracer(endpoint: str) -> RequestTracer:
    """A tracer that sends to an OTLP collector over HTTP; ConfigError without the extra."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(_HELP) from None
    return RequestTracer(OTLPSpanExporter(endpoint, timeout=2))


def _attributes(tally: Tally) -> dict[str, str | int | float]:
    """Under vLLM's names; where there are several prompts, times are those of the slowest."""
    params = tally.params
    values: dict[str, str | int | float] = {
        "gen_ai.request.id": tally.completion_id,
        "gen_ai.request.n": params.n,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.usage.prompt_tokens": tally.prompt_tokens,
        "gen_ai.usage.completion_tokens": tally.completion_tokens,
        "nsa_serve.cached_tokens": tally.cached_tokens,
        "nsa_serve.finish_reasons": ",".join(tally.finish_reasons),
    }
    if params.max_tokens is not None:
        values["gen_ai.request.max_tokens"] = params.max_tokens
    every = list(tally.times.values())
    if every:
        values |= {
            "gen_ai.latency.time_in_queue": max(t.first_scheduled - t.arrived for t in every),
            "gen_ai.latency.time_to_first_token": max(t.first_token - t.arrived for t in every),
            "gen_ai.latency.time_in_model_prefill": max(
                t.first_token - t.first_scheduled for t in every
            ),
            "gen_ai.latency.time_in_model_decode": max(t.last_token - t.first_token for t in every),
            "gen_ai.latency.e2e": max(t.last_token - t.arrived for t in every),
        }
    return values


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
