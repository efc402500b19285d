"""Functions that a chat offers, and calls in its answer."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nsa_serve.engine.prompts import ChatPrompt
from tests.support.api import CHAT, chat_body, events
from tests.support.fake_engine import FakeEngine

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def calling(engine: FakeEngine) -> FakeEngine:
    """An engine that says something and calls twice, then ends."""
    engine.text = f"Well.\n{CALL}\n{CALL}"
    engine.ends = True
    return engine


def asked(**fields: Any) -> dict[str, Any]:
    return chat_body(tools=[WEATHER], **fields)


def test_calls_are_in_the_message(client: TestClient, calling: FakeEngine) -> None:
    (choice,) = client.post(CHAT, json=asked()).json()["choices"]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", "Well.")
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    for call in message["tool_calls"]:
        assert call["type"] == "function"
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    prompt = calling.calls[0][0]
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools == [WEATHER]


def test_calls_are_streamed(client: TestClient, calling: FakeEngine) -> None:
    chunks = events(client.post(CHAT, json=asked(stream=True, n=2)).text)
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["delta"].get("content") or "" for c in choices) == "Well."
        deltas = [d for c in choices for d in c["delta"].get("tool_calls", [])]
        assert [d["index"] for d in deltas if "id" in d] == [0, 1]
        for number in range(2):
            own = [d["function"] for d in deltas if d["index"] == number]
            assert own[0]["name"] == "get_weather"
            text = "".join(piece["arguments"] for piece in own)
            assert json.loads(text) == {"city": "Rome"}
            assert len(own) > 10
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_nobody_calls_what_was_not_offered(
    client: TestClient, calling: FakeEngine, fields: dict[str, Any]
) -> None:
    (choice,) = client.post(CHAT, json=chat_body(**fields)).json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": calling.text}
    assert choice["finish_reason"] == "stop"
    prompt = calling.calls[0][0]
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools is None


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"parallel_tool_calls": False}, True),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, True),
        ({"response_format": {"type": "json_object"}}, True),
    ],
)
def test_only_what_must_be_is_held_to_a_grammar(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], held: bool
) -> None:
    assert client.post(CHAT, json=asked(max_tokens=1, **fields)).status_code == 200
    structured = engine.calls[0][1].structured_outputs
    assert (structured is not None) == held


def test_calls_and_results_of_earlier_turns_reach_the_template(
    client: TestClient, engine: FakeEngine
) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Sunny", "tool_call_id": "call_1"},
    ]
    assert client.post(CHAT, json=asked(messages=messages, max_tokens=1)).status_code == 200
    prompt = engine.calls[0][0]
    assert isinstance(prompt, ChatPrompt)
    (shown,) = prompt.messages[1]["tool_calls"]
    assert shown["function"] == {"name": "get_weather", "arguments": {"city": "Rome"}}
    text = engine.tokenizer.decode(engine.tokenizer.encode_chat(prompt.messages))
    assert CALL in text
    assert "<tool_response>\nSunny\n</tool_response>" in text
