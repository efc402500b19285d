"""Prometheus metrics under vLLM's names, labels and buckets, in a registry of their own."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nsa_api.engine import Engine
from nsa_api.engine_metrics import EngineCollector
from nsa_api.tally import Tally
from nsa_serve.engine.messages import StepOutputs
from nsa_serve.errors import DeadlineError, NsaServeError, RequestError
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
_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """All metrics of one server; but for HTTP's they begin with `attach`, which names the model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests: RequestMetrics | None = None

    def attach(self, engine: Engine, model_name: str, is_ready: Callable[[], bool]) -> None:
        """Report the figures of this engine."""
        self.registry.register(EngineCollector(PREFIX, model_name, engine, is_ready))
        self._requests = RequestMetrics(self.registry, model_name)
        engine.on_step.append(self._requests.on_step)

    def on_request_failed(self, tally: Tally, error: BaseException) -> None:
        """Take in a request that was refused, failed, or lost its client."""
        if self._requests is not None and not isinstance(error, RequestError):
            ours = isinstance(error, NsaServeError) and not isinstance(error, DeadlineError)
            self._requests.on_unfinished(tally, failed=ours)

    def on_request_done(self, tally: Tally) -> None:
        """Take in a request that came to its end."""
        if self._requests is not None:
            self._requests.on_done(tally)

    def on_stall(self) -> None:
        """Take in that work waited too long for a step to end."""
        if self._requests is not None:
            self._requests.stalls.inc()


class RequestMetrics:
    """What is observed of requests and steps as they end."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry, self._model_name = registry, model_name
        self._time_to_first_token = self._histogram("time_to_first_token_seconds", _FIRST_TOKEN)
        self._per_token = self._histogram("request_time_per_output_token_seconds", _PER_TOKEN)
        self._e2e = self._histogram("e2e_request_latency_seconds", _REQUEST)
        self._queue = self._histogram("request_queue_time_seconds", _REQUEST)
        self._prefill = self._histogram("request_prefill_time_seconds", _REQUEST)
        self._decode = self._histogram("request_decode_time_seconds", _REQUEST)
        self._inference = self._histogram("request_inference_time_seconds", _REQUEST)
        self._inter_token = ManyHistogram(
            f"{PREFIX}inter_token_latency_seconds",
            "Inter token latency seconds.",
            model_name,
            _PER_TOKEN,
        )
        registry.register(self._inter_token)
        self._step_tokens = self._histogram("iteration_tokens_total", _STEP_TOKENS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", _TOKENS)
        self._generation_tokens = self._histogram("request_generation_tokens", _TOKENS)
        self._n = self._histogram("request_params_n", _FEW)
        self._max_tokens = self._histogram("request_params_max_tokens", _TOKENS)
        self.stalls = Counter(
            f"{PREFIX}engine_stalls",
            "Times that work waited too long for a step to end.",
            ["model_name"],
            registry=registry,
        ).labels(model_name)
        success = Counter(
            f"{PREFIX}request_success",
            "Continuations by the reason of their end.",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._success = {reason: success.labels(model_name, reason) for reason in _REASONS}
        self._last_token = LastTokenTimes()

    def on_unfinished(self, tally: Tally, *, failed: bool) -> None:
        """Count the continuations that came to no end of their own."""
        self._success["error" if failed else "abort"].inc(tally.num_unfinished)

    def on_done(self, tally: Tally) -> None:
        """Observe a request that is complete."""
        for reason in tally.finish_reasons:
            self._success[reason].inc()
        self._prompt_tokens.observe(tally.prompt_tokens)
        self._generation_tokens.observe(tally.completion_tokens)
        self._n.observe(tally.params.n)
        if tally.params.max_tokens is not None:
            self._max_tokens.observe(tally.params.max_tokens)
        tokens_each = tally.completion_tokens / len(tally.finish_reasons)
        for times in tally.times.values():
            self._observe_times(times, tokens_each)

    def on_step(self, step: StepOutputs) -> None:
        """Observe what one step computed."""
        if step.stats.step_tokens:
            self._step_tokens.observe(step.stats.step_tokens)
        self._inter_token.observe_all(self._last_token.gaps(step, time.monotonic()))

    def _observe_times(self, times: RequestTimes, num_tokens: float) -> None:
        decode = times.last_token - times.first_token
        self._time_to_first_token.observe(times.first_token - times.arrived)
        self._queue.observe(times.first_scheduled - times.arrived)
        self._prefill.observe(times.first_token - times.first_scheduled)
        self._decode.observe(decode)
        self._inference.observe(times.last_token - times.first_scheduled)
        self._e2e.observe(times.last_token - times.arrived)
        if num_tokens > 1:
            self._per_token.observe(decode / (num_tokens - 1))

    def _histogram(self, name: str, buckets: Iterable[float]) -> Histogram:
        text = name.replace("_", " ").capitalize() + "."
        family = Histogram(
            PREFIX + name, text, ["model_name"], buckets=tuple(buckets), registry=self._registry
        )
        return family.labels(self._model_name)


class ManyHistogram(Collector):
    """A histogram that takes the values of a whole step; the library's takes two locks for each."""

    def __init__(self, name: str, text: str, model_name: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._model_name = name, text, model_name
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe_all(self, values: Sequence[float]) -> None:
        """Count each."""
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += sum(values)

    def collect(self) -> Iterable[Metric]:
        """As Prometheus has it: each bucket holds the ones below it too."""
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family.add_metric([self._model_name], buckets, self._sum)
        yield family


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
