"""Logs and spans of a real server process."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.command_line import start
from tests.support.http_server import run_server
from tests.support.http_streams import PATH, body

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    """Takes spans over OTLP, and keeps the bodies in `received`."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.__dict__["received"] = received
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_reach_a_collector_before_the_server_ends(collector: HTTPServer) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    with run_server(settings={"otlp_traces_endpoint": endpoint}) as server:
        header = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        answer = server.http.post(PATH, json=body(max_tokens=7), headers=header)
        server.signal()
        assert server.wait(10) == 0
        assert "Traceback" not in server.output()
    (received,) = collector.__dict__["received"]
    (resource,) = ExportTraceServiceRequest.FromString(received).resource_spans
    (span,) = resource.scope_spans[0].spans
    attributes = {entry.key: entry.value for entry in span.attributes}
    assert span.trace_id.hex() == TRACE
    assert attributes["gen_ai.request.id"].string_value == answer.json()["id"]
    assert attributes["gen_ai.usage.completion_tokens"].int_value == 7
    assert 0 < attributes["gen_ai.latency.e2e"].double_value < 30


def test_a_collector_that_is_gone_does_not_hold_the_server_up() -> None:
    settings = {"otlp_traces_endpoint": "http://127.0.0.1:9/v1/traces"}
    with run_server(settings=settings) as server:
        assert server.http.post(PATH, json=body()).status_code == 200
        server.signal()
        assert server.wait(10) == 0


def test_every_line_of_a_json_log_is_json_and_names_the_request() -> None:
    flags = ["--runner", "stand-in", "--port", "0", "--log-format", "json"]
    with start("serve", *flags, stand_in={"raises_on": 255}) as process:
        assert process.stdout is not None
        found = (re.search(rb"ready at (http://\S+)", line) for line in process.stdout)
        url = next(match for match in found if match)[1].decode()
        given = {"X-Request-Id": "my-id"}
        httpx.post(url + PATH, json=body(), headers=given).raise_for_status()
        # The engine process fails this one, and logs a traceback.
        failed = httpx.post(url + PATH, json=body(prompt=[255]))
        assert failed.status_code == 500
        process.terminate()
        _, err = process.communicate(timeout=20)
    records = [json.loads(line) for line in err.splitlines()]
    answers = [record for record in records if record["logger"] == "nsa_api.access"]
    assert [record["status"] for record in answers] == [200, 500]
    assert answers[0]["request_id"] == "my-id"
    assert answers[1]["request_id"] == failed.headers["X-Request-Id"]
    assert answers[1]["ended_by"] == "GenerationError"
    (cause,) = [record for record in records if "exception" in record]
    assert cause["process"] != answers[0]["process"]
    assert "the stand-in raises on" in cause["exception"]
