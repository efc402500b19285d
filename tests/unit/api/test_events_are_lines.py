"""An event is one line to every reader, also to those that split text at Unicode's line ends."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from nsa_serve.errors import GenerationError
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, events
from tests.support.fake_engine import FakeEngine

ENDS = "a\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029é"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_text_of_line_ends_comes_in_whole_events(
    client: TestClient, engine: FakeEngine, path: str
) -> None:
    engine.text, engine.ends = ENDS, True
    fields: dict[str, Any] = {"stream": True, "return_token_ids": True}
    body = completion_body(**fields) if path == COMPLETIONS else chat_body(**fields)
    answer = client.post(path, json=body)
    chunks = events(answer.text)
    assert len([line for line in answer.text.splitlines() if line]) == len(chunks) + 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    if path == COMPLETIONS:
        assert "".join(choice["text"] for choice in choices) == ENDS
    else:
        assert "".join(choice["delta"].get("content", "") for choice in choices) == ENDS


def test_an_error_is_one_line_too(client: TestClient, engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = GenerationError(ENDS), 1
    answer = client.post(COMPLETIONS, json=completion_body(stream=True))
    assert len([line for line in answer.text.splitlines() if line]) == 3
    assert events(answer.text)[-1]["error"]["message"] == ENDS
