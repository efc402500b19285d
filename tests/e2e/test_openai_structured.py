"""Structured output and tools of the built-in model, by the unmodified `openai` package."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionToolParam
from pydantic import BaseModel

from tests.support.http_server import ServerProcess, run_server

MODEL = "built-in"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    name: str
    born: int
    alive: bool


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    engine = {"runner": "model", "cpu_cache_gib": 1.0}
    settings = {"served_model_names": [MODEL]}
    with run_server(engine=engine, settings=settings) as server:
        yield server


def asked(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_an_answer_is_parsed_into_a_model(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=asked("Tell me of Ada Lovelace, born in 1815, as JSON."),
        response_format=Person,
        temperature=0,
        max_tokens=100,
    )
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)
    assert answer.choices[0].finish_reason == "stop"
    assert "Ada" in person.name


def test_every_one_of_several_answers_matches_streamed_or_not(client: OpenAI) -> None:
    pattern = r"[A-Z][a-z]{2,9} is (red|blue), \d{1,3}%\."
    fields: dict[str, Any] = {
        "model": MODEL,
        "prompt": ["The colour of the sky:", "The colour of blood:"],
        "n": 3,
        "temperature": 1.2,
        "seed": 7,
        "max_tokens": 40,
        "logprobs": 2,
        "extra_body": {"structured_outputs": {"regex": pattern}},
    }
    whole = [choice.text for choice in client.completions.create(**fields).choices]
    assert all(re.fullmatch(pattern, text) for text in whole), whole
    streamed = [""] * 6
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == whole


def test_a_choice_is_one_of_them(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=asked("Is the sentence 'I love it' positive or negative?"),
        temperature=0,
        extra_body={"structured_outputs": {"choice": ["positive", "negative"]}},
    )
    assert answer.choices[0].message.content in ("positive", "negative")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_call_is_valid(client: OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    arguments = json.loads(call.function.arguments)
    assert "Paris" in arguments["city"]
    assert arguments["unit"] in ("celsius", "fahrenheit")


def test_a_streamed_call_is_the_same_in_pieces(client: OpenAI) -> None:
    fields: Any = {
        "model": MODEL,
        "messages": QUESTION,
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**fields).choices[0].message.tool_calls
    assert whole is not None
    with client.chat.completions.stream(**fields) as stream:
        chunks = [event for event in stream if event.type == "chunk"]
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls or []
    assert whole[0].type == "function"
    assert call.function.arguments == whole[0].function.arguments
    pieces = [d for c in chunks for x in c.chunk.choices for d in x.delta.tool_calls or []]
    assert len(pieces) > 4


def test_a_conversation_goes_on_after_a_call(client: OpenAI) -> None:
    first = (
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
        )
        .choices[0]
        .message
    )
    assert first.tool_calls
    result: Any = {
        "role": "tool",
        "tool_call_id": first.tool_calls[0].id,
        "content": "Sunny, 21 degrees",
    }
    called: Any = first.model_dump(exclude_none=True)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[*QUESTION, called, result],
        temperature=0,
        max_tokens=40,
    )
    text = answer.choices[0].message.content or ""
    assert "21" in text or "unny" in text


def test_streams_go_on_beside_hostile_grammars(client: OpenAI) -> None:
    hostile = [
        {"regex": "((a{0,1000}){0,1000}){0,1000}"},
        {"regex": "(a|b|c)*a(a|b|c){40}"},
        {"grammar": 'start: a\na: a a | "x" | a a a'},
        {"choice": [str(i) for i in range(5000)]},
        {"json": {"enum": list(range(100_000))}},
    ] * 4

    def attack(spec: dict[str, Any]) -> int:
        try:
            client.completions.create(
                model=MODEL, prompt="x", max_tokens=8, extra_body={"structured_outputs": spec}
            )
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    def ask() -> str:
        answer = client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0
        )
        return answer.choices[0].text

    alone = ask()
    with ThreadPoolExecutor(8) as pool:
        codes = pool.map(attack, hostile)
        beside = [pool.submit(ask) for _ in range(4)]
        assert [future.result() for future in beside] == [alone] * 4
        assert set(codes) <= {200, 400}
