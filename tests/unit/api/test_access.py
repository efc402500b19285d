"""One log record for each answer, without a word of prompts or invented paths."""

import logging

import pytest
from fastapi.testclient import TestClient

from nsa_serve.errors import GenerationError
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, make_client
from tests.support.fake_engine import FakeEngine


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nsa_api.access")


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    """Of the only record."""
    (record,) = [record for record in caplog.records if record.name == "nsa_api.access"]
    found: dict[str, object] = record.__dict__["fields"]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_is_told_with_its_figures(
    client: TestClient, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    answer = client.post(COMPLETIONS, json=completion_body(max_tokens=5, n=2, stream=stream))
    assert answer.status_code == 200
    found = fields(caplog)
    assert found["method"] == "POST"
    assert found["route"] == COMPLETIONS
    assert found["status"] == 200
    assert found["completion_tokens"] == 10
    assert found["prompt_tokens"] == 5
    assert found["cached_tokens"] == 1
    assert found["finish_reasons"] == "length,length"
    assert (found["queue_seconds"], found["first_token_seconds"]) == (0.5, 1.0)
    assert str(found["completion_id"]) in answer.text
    assert "ended_by" not in found


def test_a_failure_is_told(
    client: TestClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.failure, engine.fail_after = GenerationError("NaN"), 2
    client.post(CHAT, json=chat_body(stream=True))
    found = fields(caplog)
    assert (found["ended_by"], found["completion_tokens"]) == ("GenerationError", 2)


def test_refusals_are_told_without_what_the_client_invented(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(engine, api_keys=("key",))
    client.request("GET", "/secret-path?secret=query", headers={"X-Request-Id": "mine"})
    found = fields(caplog)
    assert (found["status"], found["route"]) == (401, "(no route)")
    assert "secret" not in caplog.text


def test_what_machines_ask_every_few_seconds_is_not_told(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/health", "/health/ready", "/metrics", "/ping", "/load"):
        client.get(path)
    assert not [record for record in caplog.records if record.name == "nsa_api.access"]


def test_prompts_and_answers_are_not_logged(
    client: TestClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    client.post(COMPLETIONS, json=completion_body(prompt="confidential"))
    assert fields(caplog)["status"] == 200
    written = "".join(str(record.__dict__) for record in caplog.records if "nsa" in record.name)
    assert "confidential" not in written
    assert engine.text not in written
