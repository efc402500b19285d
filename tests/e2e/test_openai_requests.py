"""What the unmodified `openai` package may ask, and how its answers read: whole answers."""

from typing import Any

import openai
import pytest

from nsa_serve.text.tokenizer import Tokenizer
from tests.support.http_server import run_server
from tests.support.openai_client import (
    MODEL,
    Fields,
    client_of,
    expected_answer,
    expected_ids,
    expected_text,
)

EVERY_FIELD: Fields = {
    "max_tokens": 12,
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["\x00\x01\x02"],
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "logit_bias": {"65": 1},
    "user": "somebody",
    "extra_body": {
        "top_k": 10,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "min_tokens": 3,
        "stop_token_ids": [3],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "bad_words": ["never"],
        "priority": 0,
        "cache_salt": "salt",
        "truncate_prompt_tokens": 40,
        "return_token_ids": True,
        "prompt_logprobs": 1,
    },
}
CHAT_FIELDS: Fields = {"logprobs": True, "top_logprobs": 2, "max_completion_tokens": 12}
QUESTION: Any = [{"role": "user", "content": "Hello"}]
COLOUR: Any = {
    "type": "function",
    "function": {
        "name": "choose",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}},
            "required": ["colour"],
            "additionalProperties": False,
        },
    },
}


def test_a_prompt_has_four_forms(client: openai.OpenAI) -> None:
    text = "A prompt, é"
    ids = Tokenizer.byte_level().encode(text)
    for prompt in (text, [text], ids, [ids]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=20)
        assert [choice.text for choice in answer.choices] == [expected_text(text, 20)]


def test_an_answer_of_a_completion_has_what_openais_has(client: openai.OpenAI) -> None:
    answers = [client.completions.create(model=MODEL, prompt="x") for _ in range(2)]
    assert answers[0].object == "text_completion"
    assert answers[0].model == MODEL
    assert abs(answers[0].created - answers[1].created) < 60
    assert answers[0].id != answers[1].id
    assert answers[0].choices[0].finish_reason == "length"
    usage = answers[0].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1, 16, 17)


def test_every_field_of_a_completion_is_honoured(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt="Hello", logprobs=2, echo=False, best_of=1, suffix="", **EVERY_FIELD
    )
    assert raw.headers.get("x-ignored-fields") == "user"
    choices = raw.parse().choices
    assert [choice.index for choice in choices] == [0, 1]
    for choice in choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert len(choice.logprobs.tokens) == len((choice.model_extra or {})["token_ids"])


def test_every_field_of_a_chat_is_honoured(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, **{**EVERY_FIELD, **CHAT_FIELDS}
    )
    assert raw.headers.get("x-ignored-fields") == "user"
    for choice in raw.parse().choices:
        assert choice.logprobs is not None
        assert [len(place.top_logprobs) for place in choice.logprobs.content or []] == [2] * 12


def test_null_stands_for_a_field_that_is_not_given(client: openai.OpenAI) -> None:
    fields: Fields = dict.fromkeys(EVERY_FIELD)
    del fields["extra_body"]
    completion = client.completions.create(
        model=MODEL, prompt="x", logprobs=None, echo=None, best_of=None, suffix=None, **fields
    )
    assert completion.choices[0].text == expected_text("x", 16)
    names = [*EVERY_FIELD["extra_body"], "response_format", "tools", "tool_choice", "functions"]
    nothing = {name: None for name in names if name != "priority"}
    flags = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")
    extra = {**nothing, **dict.fromkeys(flags, False), "max_tokens": 5}
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body=extra)
    assert chat.choices[0].message.content == expected_answer(QUESTION, 5)


def test_fields_that_only_openai_knows_are_ignored_and_named(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=4,
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        reasoning_effort="low",
    )
    named = {name.strip() for name in raw.headers["x-ignored-fields"].split(",")}
    assert named == {"store", "metadata", "service_tier", "reasoning_effort"}
    assert raw.parse().choices[0].message.content == expected_answer(QUESTION, 4)


@pytest.mark.parametrize(("field", "value"), [("best_of", 3), ("suffix", "after"), ("best_of", 0)])
def test_what_would_change_the_answer_is_refused(
    client: openai.OpenAI, field: str, value: Any
) -> None:
    fields: Fields = {field: value}
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="x", **fields)
    assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")


def test_a_conversation_of_every_role_and_of_parts(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What "}]},
        {"role": "assistant", "content": "That"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
        },
    ]
    plain: Any = [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=20)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected_answer(plain, 20)


def test_a_chat_goes_on_to_the_end_of_the_context() -> None:
    with run_server(engine={"max_model_len": 128}) as small, client_of(small) as client:
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 128
        assert client.models.retrieve(MODEL).model_dump()["max_model_len"] == 128
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=10**6)
        assert answer.usage is not None
        assert answer.usage.total_tokens == 128


def test_logprobs_name_the_sampled_tokens_and_their_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=30, logprobs=True, top_logprobs=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    said = b"".join(bytes(place.bytes or []) for place in logprobs.content or [])
    assert said.decode(errors="replace") == answer.choices[0].message.content
    assert all(place.logprob <= 0 for place in logprobs.content or [])


def test_token_ids_are_returned_on_request(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=8, extra_body={"return_token_ids": True}
    )
    extra = answer.choices[0].model_extra or {}
    assert extra["prompt_token_ids"] == list(b"Hello")
    assert extra["token_ids"] == expected_ids("Hello", 8)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "choose"}}]
)
def test_a_forced_call_is_parsed_streamed_or_not(client: openai.OpenAI, choice: Any) -> None:
    fields: Fields = {
        "model": MODEL,
        "messages": QUESTION,
        "tools": [COLOUR],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 200,
    }
    whole = client.chat.completions.create(**fields).choices[0]
    (call,) = whole.message.tool_calls or []
    assert whole.finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "choose"
    assert whole.message.content is None
    with client.chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments
    assert final.finish_reason == "tool_calls"


def test_ids_and_versions_of_a_request_are_told(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt="x", extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    first, second = (client.completions.create(model=MODEL, prompt="x") for _ in range(2))
    assert first._request_id
    assert first._request_id != second._request_id


def test_models_tell_what_they_are(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.object, model.id) == ("model", MODEL)
    assert (model.model_extra or {})["max_model_len"] == 8192
