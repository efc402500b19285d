"""A span for each request, if OpenTelemetry is there and asked for."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from nsa_api.app import create_app
from nsa_api.settings import ApiSettings
from nsa_api.tracing import RequestTracer
from nsa_serve.errors import ConfigError, GenerationError
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body
from tests.support.fake_engine import FakeEngine

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """What a client's requests leave behind."""

    def __init__(self, client: TestClient) -> None:
        assert isinstance(client.app, FastAPI)
        self._exporter = InMemorySpanExporter()
        self._tracer = RequestTracer(self._exporter)
        client.app.state.server.tracer = self._tracer

    def only(self) -> ReadableSpan:
        self.close()
        (span,) = self._exporter.get_finished_spans()
        return span

    def close(self) -> None:
        self._tracer.close()


@pytest.fixture
def spans(client: TestClient) -> Iterator[Spans]:
    spans = Spans(client)
    yield spans
    spans.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_times(client: TestClient, spans: Spans, stream: bool) -> None:
    body = completion_body(max_tokens=5, temperature=0.5, stream=stream)
    client.post(COMPLETIONS, json=body)
    span = spans.only()
    attributes = dict(span.attributes or {})
    assert span.name == "generate"
    assert span.parent is None
    assert attributes["gen_ai.response.model"] == "fake"
    assert attributes["gen_ai.usage.prompt_tokens"] == 5
    assert attributes["gen_ai.usage.completion_tokens"] == 5
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.max_tokens"] == 5
    assert attributes["gen_ai.latency.time_in_queue"] == 0.5
    assert attributes["gen_ai.latency.time_in_model_prefill"] == 0.5
    assert attributes["gen_ai.latency.time_in_model_decode"] == 1.0
    assert attributes["gen_ai.latency.time_to_first_token"] == 1.0
    assert attributes["gen_ai.latency.e2e"] == 2.0
    assert span.status.status_code is StatusCode.UNSET
    assert 0 < (span.start_time or 0) <= (span.end_time or 0)


def test_it_is_part_of_the_clients_trace(client: TestClient, spans: Spans) -> None:
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    client.post(CHAT, json=chat_body(max_tokens=2), headers=header)
    span = spans.only()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-00", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_bad_traceparent_is_no_parent(client: TestClient, spans: Spans, header: str) -> None:
    answer = client.post(CHAT, json=chat_body(max_tokens=2), headers={"traceparent": header})
    assert answer.status_code == 200
    assert spans.only().parent is None


def test_a_failure_is_a_span_with_an_error(
    client: TestClient, engine: FakeEngine, spans: Spans
) -> None:
    engine.failure = GenerationError("NaN")
    client.post(COMPLETIONS, json=completion_body())
    status = spans.only().status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "GenerationError")


def test_without_the_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("opentelemetry.exporter"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'nsa-serve\[otel\]'"):
        create_app(None, ApiSettings(otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces"))


def test_nothing_of_its_sdk_is_imported_unless_asked_for() -> None:
    """FastAPI brings its API along where that is installed."""
    program = (
        "import sys, nsa_api.server; from nsa_api.app import create_app;"
        "from nsa_api.settings import ApiSettings; create_app(None, ApiSettings());"
        "sys.exit(bool({'opentelemetry.sdk', 'opentelemetry.exporter'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
