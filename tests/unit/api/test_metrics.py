"""GET /metrics: vLLM's names, sums that agree, a bounded number of series."""

import random
import string

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nsa_api.metrics import LastTokenTimes, ManyHistogram
from nsa_serve.engine.messages import EngineStats, SequenceOutput, StepOutputs
from nsa_serve.errors import QueueFullError
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, make_client
from tests.support.fake_engine import FakeEngine

NAMES = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "request_time_per_output_token_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count",
    "request_prefill_time_seconds_count",
    "request_decode_time_seconds_count",
    "iteration_tokens_total_count",
    "request_prompt_tokens_count",
    "request_generation_tokens_count",
    "request_inference_time_seconds_count",
    "request_params_n_count",
    "request_params_max_tokens_count",
    "cache_config_info",
}
OURS = {
    "ready",
    "build_info",
    "http_requests_total",
    "engine_steps_total",
    "engine_restarts_total",
    "engine_stalls_total",
    "kv_cache_bytes",
    "compressed_cache_bytes",
    "attention_tokens_read_total",
    "attention_tokens_context_total",
}


def samples(client: TestClient) -> dict[str, float]:
    """Values by name, and by name{label values} where there are labels but the model's name."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            others = {**sample.labels}
            others.pop("model_name", None)
            labels = ",".join(others.values())
            name = sample.name.removeprefix("nsa_serve:")
            found[f"{name}{{{labels}}}" if labels else name] = sample.value
    return found


def step(*sequence_ids: int, finish: bool = False) -> StepOutputs:
    outputs = [SequenceOutput(i, [65], "stop" if finish else None) for i in sequence_ids]
    return StepOutputs(outputs, EngineStats(step_tokens=len(outputs)))


def test_vllms_names_are_there_from_the_start(client: TestClient) -> None:
    client.get("/version")
    assert {name.partition("{")[0] for name in samples(client)} >= NAMES | OURS


def test_all_but_http_and_process_figures_name_the_model(engine: FakeEngine) -> None:
    client = make_client(engine, served_model_names=("main", "alias"))
    client.post(COMPLETIONS, json=completion_body(model="alias"))
    ours = [
        sample
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("nsa_serve:") and "http_requests" not in sample.name
    ]
    assert {sample.labels["model_name"] for sample in ours} == {"main"}


def test_before_the_model_is_loaded_there_are_http_and_process_figures() -> None:
    client = make_client(None)
    client.get("/version")
    found = samples(client)
    assert found["http_requests_total{/version,GET,200}"] == 1
    assert "num_requests_running" not in found
    assert found["process_resident_memory_bytes"] > 0


def test_what_each_branch_read_is_counted(client: TestClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(
        compressed_tokens_read=1,
        selected_tokens_read=2,
        window_tokens_read=3,
        dense_tokens_read=4,
        context_tokens=100,
    )
    found = samples(client)
    branches = ("compressed", "selected", "window", "dense")
    assert [found[f"attention_tokens_read_total{{{b}}}"] for b in branches] == [1, 2, 3, 4]
    assert found["attention_tokens_context_total"] == 100
    assert (found["kv_cache_bytes"], found["compressed_cache_bytes"]) == (4096, 1024)


def test_ready_is_what_readiness_says(client: TestClient, engine: FakeEngine) -> None:
    assert samples(client)["ready"] == 1
    engine.alive = False
    assert samples(client)["ready"] == 0


def test_engine_figures_are_those_of_the_last_step(client: TestClient, engine: FakeEngine) -> None:
    engine.stats = EngineStats(
        num_running=3, num_waiting=2, kv_cache_usage=0.5, num_preemptions=7, prefix_cache_hits=11
    )
    found = samples(client)
    assert found["num_requests_running"] == 3
    assert found["num_requests_waiting"] == 2
    assert found["kv_cache_usage_perc"] == 0.5
    assert found["num_preemptions_total"] == 7
    assert found["prefix_cache_hits_total"] == 11


def test_finished_requests_are_counted_with_their_times(client: TestClient) -> None:
    client.post(COMPLETIONS, json=completion_body(max_tokens=5, n=2))
    client.post(CHAT, json=chat_body(max_tokens=3, stream=True))
    found = samples(client)
    assert found["request_success_total{length}"] == 3
    assert found["e2e_request_latency_seconds_count"] == 2
    assert found["e2e_request_latency_seconds_sum"] == 4.0
    assert found["time_to_first_token_seconds_sum"] == 2.0
    assert found["request_queue_time_seconds_sum"] == 1.0
    assert found["request_prefill_time_seconds_sum"] == 1.0
    assert found["request_generation_tokens_sum"] == 13
    assert found["request_time_per_output_token_seconds_sum"] == 1 / 4 + 1 / 2


def test_refused_requests_are_no_success_and_no_abort(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.failure = QueueFullError("full")
    client.post(COMPLETIONS, json=completion_body())
    found = samples(client)
    assert found["request_success_total{abort}"] == 0
    assert found["http_requests_total{/v1/completions,POST,429}"] == 1


def test_steps_give_gaps_between_tokens(client: TestClient, engine: FakeEngine) -> None:
    for outputs in (step(1, 2), step(1, 2), step(1, finish=True), step(2, 3)):
        engine.on_step[0](outputs)
    found = samples(client)
    assert found["inter_token_latency_seconds_count"] == 4
    assert found["iteration_tokens_total_sum"] == 7


def test_many_values_at_once_are_told_as_the_library_tells_each() -> None:
    registry, others = CollectorRegistry(), CollectorRegistry()
    bounds = (0.01, 0.025, 0.5, 1.0, 80.0)
    many = ManyHistogram("gap_seconds", "Gaps.", "a model", bounds)
    registry.register(many)
    each = Histogram("gap_seconds", "Gaps.", ["model_name"], buckets=bounds, registry=others)
    rng = random.Random(0)
    for _ in range(20):
        values = [*bounds, *(rng.lognormvariate(-2, 3) for _ in range(rng.randrange(30)))]
        many.observe_all(values)
        for value in values:
            each.labels("a model").observe(value)
    told, expected = told_by(registry), told_by(others)
    assert told == pytest.approx(expected)
    assert len(told) == len(bounds) + 3  # +Inf, the count and the sum


def told_by(registry: CollectorRegistry) -> dict[str, float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = (sample for family in families for sample in family.samples)
    return {f"{s.name} {s.labels}": s.value for s in samples if not s.name.endswith("_created")}


def test_sequences_that_were_aborted_are_forgotten_in_time() -> None:
    times = LastTokenTimes()
    for i in range(10_000):
        times.gaps(step(i), now=float(i))
    assert len(times) < 1000
    assert times.gaps(step(9_999), now=10_000.0) == [1.0]


def test_invented_paths_and_methods_make_no_series(client: TestClient) -> None:
    rng = random.Random(0)
    for _ in range(300):
        word = "".join(rng.choices(string.ascii_uppercase, k=8))
        client.request(word, f"/{word}")
        client.get(f"/v1/models/{word}")
    found = samples(client)
    assert len(found) < 500
    assert found["http_requests_total{none,other,404}"] == 300
    assert found["http_requests_total{/v1/models/{model:path},GET,404}"] == 300
