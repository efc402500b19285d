"""Prometheus metrics under vLLM's names and buckets, in a registry of their own."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nsa_api.engine import Engine
from nsa_api.tally import Tally
from nsa_serve.engine.messages import StepOutputs
from nsa_serve.errors import NsaServeError, RequestError
from nsa_serve.outputs import RequestTimes

PREFIX = "nsa_serve:"

_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_FEW = (1, 2, 5, 10, 20, 50, 100, 128)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._time_to_first_token = self._histogram("time_to_first_token_seconds", _FIRST_TOKEN)
        self._per_token = self._histogram("request_time_per_output_token_seconds", _PER_TOKEN)
        self._e2e = self._histogram("e2e_request_latency_seconds", _REQUEST)
        self._queue = self._histogram("request_queue_time_seconds", _REQUEST)
        self._prefill = self._histogram("request_prefill_time_seconds", _REQUEST)
        self._decode = self._histogram("request_decode_time_seconds", _REQUEST)
        self._inter_token = self._histogram("inter_token_latency_seconds", _PER_TOKEN)
        self._step_tokens = self._histogram("iteration_tokens_total", _STEP_TOKENS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", _TOKENS)
        self._generation_tokens = self._histogram("request_generation_tokens", _TOKENS)
        self._n = self._histogram("request_params_n", _FEW)
        self._success = Counter(
            f"{PREFIX}request_success",
            "Continuations by the reason of their end.",
            ["finished_reason"],
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(reason)
        self._last_token = LastTokenTimes()

    def attach(self, engine: Engine) -> None:
        """Report the figures of this engine."""
        self.registry.register(EngineCollector(engine))
        engine.on_step.append(self._on_step)

    def on_request_failed(self, tally: Tally, error: BaseException) -> None:
        """Take in a request that was refused, failed, or lost its client."""
        if isinstance(error, RequestError):
            return
        failed = isinstance(error, NsaServeError)
        unfinished = self._success.labels("error" if failed else "abort")
        unfinished.inc(tally.num_unfinished)

    def on_request_done(self, tally: Tally) -> None:
        """Take in a request that came to its end."""
        for reason in tally.finish_reasons:
            self._success.labels(reason).inc()
        self._prompt_tokens.observe(tally.prompt_tokens)
        self._generation_tokens.observe(tally.completion_tokens)
        self._n.observe(tally.params.n)
        tokens_each = tally.completion_tokens / len(tally.finish_reasons)
        for times in tally.times.values():
            self._observe_times(times, tokens_each)

    def _observe_times(self, times: RequestTimes, num_tokens: float) -> None:
        decode = times.last_token - times.first_token
        self._time_to_first_token.observe(times.first_token - times.arrived)
        self._queue.observe(times.first_scheduled - times.arrived)
        self._prefill.observe(times.first_token - times.first_scheduled)
        self._decode.observe(decode)
        self._e2e.observe(times.last_token - times.arrived)
        if num_tokens > 1:
            self._per_token.observe(decode / (num_tokens - 1))

    def _on_step(self, step: StepOutputs) -> None:
        if step.stats.step_tokens:
            self._step_tokens.observe(step.stats.step_tokens)
        for gap in self._last_token.gaps(step, time.monotonic()):
            self._inter_token.observe(gap)

    def _histogram(self, name: str, buckets: Iterable[float]) -> Histogram:
        text = name.replace("_", " ").capitalize() + "."
        return Histogram(PREFIX + name, text, buckets=tuple(buckets), registry=self.registry)


class LastTokenTimes:
    """When each running sequence last gave a token.

    The engine does not report the end of an aborted sequence, so old entries are dropped now and
    then: whenever the table has doubled.
    """

    _KEEP_SECONDS = 60.0

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._sweep_at = 256

    def __len__(self) -> int:
        return len(self._times)

    def gaps(self, step: StepOutputs, now: float) -> list[float]:
        """Seconds since the token before, for each sequence that gave one now."""
        gaps = []
        times = self._times
        for output in step.outputs:
            if not output.new_token_ids:
                continue
            before = times.pop(output.sequence_id, None)
            if before is not None:
                gaps.append(now - before)
            if output.finish_reason is None:
                times[output.sequence_id] = now
        if len(times) > self._sweep_at:
            oldest = now - self._KEEP_SECONDS
            self._times = {key: at for key, at in times.items() if at >= oldest}
            self._sweep_at = max(256, 2 * len(self._times))
        return gaps


class EngineCollector(Collector):
    """Reads the engine's own gauges and counters when asked, not before."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """The figures after the latest step."""
        stats = self._engine.stats
        for name, text, value in (
            ("num_requests_running", "Sequences that take part in steps.", stats.num_running),
            ("num_requests_waiting", "Sequences that wait for pages.", stats.num_waiting),
            ("kv_cache_usage_perc", "Referenced pages over all pages.", stats.kv_cache_usage),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value)
        for name, text, value in (
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits),
            ("num_preemptions", "Sequences that lost their pages.", stats.num_preemptions),
            ("prompt_tokens", "Prompt tokens of served requests.", stats.prompt_tokens),
            ("generation_tokens", "Tokens sampled.", stats.generation_tokens),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value)
