"""POST /v1/chat/completions."""

from fastapi.testclient import TestClient

from nsa_serve.engine.prompts import ChatPrompt
from tests.support.api import CHAT, chat_body, events
from tests.support.fake_engine import FakeEngine


def test_whole_answer(client: TestClient) -> None:
    answer = client.post(CHAT, json=chat_body(max_completion_tokens=9)).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The quick"},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + 9
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}


def test_rest_of_the_context_unless_told(client: TestClient, engine: FakeEngine) -> None:
    client.post(CHAT, json=chat_body())
    client.post(CHAT, json=chat_body(max_tokens=5))
    client.post(CHAT, json=chat_body(max_tokens=5, max_completion_tokens=6))
    assert [call[1].max_tokens for call in engine.calls] == [None, 5, 6]


def test_text_parts_are_joined(client: TestClient, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "me"},
        {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None},
        {"role": "tool", "content": "42", "tool_call_id": "call-1"},
    ]
    assert client.post(CHAT, json=chat_body(messages=messages)).status_code == 200
    prompt = engine.calls[0][0]
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello", "name": "me"},
        {"role": "assistant", "content": "Hi"},
        {"role": "tool", "content": "42", "tool_call_id": "call-1"},
    ]


def test_logprobs_in_the_chat_format(client: TestClient) -> None:
    body = chat_body(max_tokens=1, logprobs=True, top_logprobs=2)
    logprobs = client.post(CHAT, json=body).json()["choices"][0]["logprobs"]
    best = {"token": "T", "logprob": -0.5, "bytes": [84]}
    other = {"token": "U", "logprob": -9999.0, "bytes": [85]}
    assert logprobs == {"content": [{**best, "top_logprobs": [best, other]}]}


def test_stream_begins_with_the_role_and_ends_with_the_reason(client: TestClient) -> None:
    chunks = events(client.post(CHAT, json=chat_body(max_tokens=3, stream=True)).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "T"},
        {"content": "h"},
        {"content": "e"},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)


def test_every_answer_of_a_stream_has_its_role(client: TestClient) -> None:
    chunks = events(client.post(CHAT, json=chat_body(max_tokens=2, n=3, stream=True)).text)
    first = [chunk["choices"] for chunk in chunks[:3]]
    assert [[choice["index"] for choice in choices] for choices in first] == [[0], [1], [2]]
    assert all(choices[0]["delta"]["role"] == "assistant" for choices in first)


def test_usage_chunk_comes_last_with_no_choices(client: TestClient) -> None:
    body = chat_body(max_tokens=2, stream=True, stream_options={"include_usage": True})
    chunks = events(client.post(CHAT, json=body).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 3


def test_continuous_usage_counts_up(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat_body(max_tokens=3, stream=True, stream_options=options)
    chunks = events(client.post(CHAT, json=body).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 3]


def test_token_ids_on_request(client: TestClient) -> None:
    body = chat_body(max_tokens=2, stream=True, return_token_ids=True)
    first, *rest = events(client.post(CHAT, json=body).text)
    assert len(first["prompt_token_ids"]) > 5
    assert [bytes(chunk["choices"][0]["token_ids"]) for chunk in rest] == [b"T", b"h"]
