"""Failures of the engine: as HTTP errors before the first token, as events after it."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from nsa_serve.errors import (
    ContextLengthError,
    EngineDeadError,
    GenerationError,
    QueueFullError,
    RequestError,
)
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, events, make_client
from tests.support.fake_engine import FakeEngine

FAILURES = [
    (RequestError("no", param="stop"), 400, "invalid_value"),
    (ContextLengthError("long", param="prompt"), 400, "context_length_exceeded"),
    (QueueFullError("full"), 429, "queue_full"),
    (GenerationError("NaN in the logits"), 500, "generation_failed"),
    (EngineDeadError("gone"), 503, "engine_dead"),
    (ZeroDivisionError("secret detail"), 500, "internal_error"),
]


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Exception) else ""


@pytest.fixture(autouse=True)
def served_again(client: TestClient, engine: FakeEngine) -> Iterator[None]:
    """After every failure the next request is served, and nothing still runs."""
    yield
    engine.failure = None
    assert client.post(COMPLETIONS, json=completion_body()).status_code == 200
    assert client.get("/load").json() == {"server_load": 0}
    assert engine.running == set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("failure", "status", "code"), FAILURES, ids=name)
def test_failure_before_the_first_token_is_an_http_error(
    client: TestClient, engine: FakeEngine, stream: bool, failure: Exception, status: int, code: str
) -> None:
    engine.failure = failure
    answer = client.post(COMPLETIONS, json=completion_body(stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(("failure", "status", "code"), FAILURES, ids=name)
def test_failure_in_a_stream_is_an_event_before_done(
    client: TestClient, engine: FakeEngine, path: str, failure: Exception, status: int, code: str
) -> None:
    engine.failure, engine.fail_after = failure, 2
    body = completion_body(stream=True) if path == COMPLETIONS else chat_body(stream=True)
    answer = client.post(path, json=body)
    assert answer.status_code == 200
    *chunks, last = events(answer.text)
    assert last["error"]["code"] == code
    assert len(chunks) == (2 if path == COMPLETIONS else 3)
    assert "secret" not in answer.text


def test_one_failing_prompt_ends_the_others(client: TestClient, engine: FakeEngine) -> None:
    body = completion_body(prompt=["short", "x" * 2000], max_tokens=900, stream=True)
    answer = client.post(COMPLETIONS, json=body)
    assert "context_length_exceeded" in answer.text
    body["stream"] = False
    assert client.post(COMPLETIONS, json=body).status_code == 400
    assert engine.running == set()


@pytest.mark.parametrize(("seconds", "whole"), [(1.0, "1"), (1.0004, "2"), (59.5, "60")])
def test_a_full_queue_says_when_to_come_back(
    client: TestClient, engine: FakeEngine, seconds: float, whole: str
) -> None:
    """In whole seconds, never too early, and in the milliseconds that OpenAI's clients prefer."""
    engine.failure = QueueFullError("full", retry_after=seconds)
    answer = client.post(COMPLETIONS, json=completion_body())
    assert answer.headers["Retry-After"] == whole
    assert 0 <= int(answer.headers["Retry-After-Ms"]) - 1000 * seconds < 1


def test_starting_server_says_503_and_when_to_come_back() -> None:
    client = make_client(None)
    for answer in (client.post(COMPLETIONS, json=completion_body()), client.get("/v1/models")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
        assert int(answer.headers["Retry-After"]) > 0
