"""What the engine counts by itself, read when Prometheus asks and not before."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from nsa_api.engine import Engine
from nsa_serve import __version__


class EngineCollector(Collector):
    """The engine's gauges and counters after its latest step."""

    def __init__(
        self, prefix: str, model_name: str, engine: Engine, is_ready: Callable[[], bool]
    ) -> None:
        self._prefix, self._model_name = prefix, model_name
        self._engine, self._is_ready = engine, is_ready

    def collect(self) -> Iterable[Metric]:
        """Gauges of now, counters since the start of the engine process."""
        stats, info = self._engine.stats, self._engine.info
        for name, text, value in (
            ("num_requests_running", "Sequences that take part in steps.", stats.num_running),
            ("num_requests_waiting", "Sequences that wait for pages.", stats.num_waiting),
            ("kv_cache_usage_perc", "Referenced pages over all pages.", stats.kv_cache_usage),
            ("ready", "1 while requests are served, as /health/ready says.", self._is_ready()),
            ("kv_cache_bytes", "Of the whole cache, compressed tokens included.", info.cache_bytes),
            (
                "compressed_cache_bytes",
                "What compressed keys and values take of the cache.",
                info.compressed_cache_bytes,
            ),
        ):
            yield self._gauge(name, text, float(value))
        for name, text, value in (
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits),
            ("num_preemptions", "Sequences that lost their pages.", stats.num_preemptions),
            ("prompt_tokens", "Prompt tokens of served requests.", stats.prompt_tokens),
            ("generation_tokens", "Tokens sampled.", stats.generation_tokens),
            ("engine_steps", "Steps computed.", stats.num_steps),
            ("engine_restarts", "Starts of the engine process after it died.", self._restarts),
            (
                "attention_tokens_context",
                "Keys that dense attention would have read, over layers, for one kv head.",
                stats.context_tokens,
            ),
        ):
            yield self._counter(name, text, value)
        yield self._tokens_read()
        yield from self._infos()

    @property
    def _restarts(self) -> int:
        return self._engine.num_restarts

    def _tokens_read(self) -> Metric:
        stats = self._engine.stats
        family = CounterMetricFamily(
            f"{self._prefix}attention_tokens_read",
            "Keys that queries read, by branch, over layers, for one kv head.",
            labels=["model_name", "branch"],
        )
        for branch, value in (
            ("compressed", stats.compressed_tokens_read),
            ("selected", stats.selected_tokens_read),
            ("window", stats.window_tokens_read),
            ("dense", stats.dense_tokens_read),
        ):
            family.add_metric([self._model_name, branch], value)
        return family

    def _infos(self) -> Iterator[Metric]:
        info = self._engine.info
        for name, text, values in (
            ("build", "What runs.", {"version": __version__}),
            (
                "cache_config",
                "The cache's pages.",
                {
                    "block_size": str(info.page_size),
                    "num_gpu_blocks": str(info.num_pages),
                    "cache_dtype": info.dtype,
                    "device": info.device,
                    "attention": info.attention,
                },
            ),
        ):
            family = InfoMetricFamily(self._prefix + name, text)
            family.add_metric([], {"model_name": self._model_name, **values})
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(self._prefix + name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(self._prefix + name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family
