"""POST /v1/completions."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from nsa_serve.model.loading.folder import GenerationDefaults
from tests.support.api import COMPLETIONS, completion_body, events
from tests.support.fake_engine import FakeEngine


def test_sixteen_tokens_unless_told(client: TestClient) -> None:
    answer = client.post(COMPLETIONS, json=completion_body()).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "The quick brown ",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 16,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hello", ["Hello"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_every_form_of_prompt(
    client: TestClient, engine: FakeEngine, prompt: Any, prompts: list[Any]
) -> None:
    answer = client.post(COMPLETIONS, json=completion_body(prompt=prompt)).json()
    assert [call[0] for call in engine.calls] == prompts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(prompts)))


@pytest.mark.parametrize("stream", [False, True])
def test_index_counts_prompts_then_n(client: TestClient, stream: bool) -> None:
    body = completion_body(prompt=["a", "b", "c"], n=2, max_tokens=2, stream=stream)
    response = client.post(COMPLETIONS, json=body)
    texts = dict.fromkeys(range(6), "")
    for chunk in events(response.text) if stream else [response.json()]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == dict.fromkeys(range(6), "Th")


def test_logprobs_in_the_legacy_format(client: TestClient) -> None:
    body = completion_body(max_tokens=3, logprobs=2)
    logprobs = client.post(COMPLETIONS, json=body).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["T", "h", "e"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [
            {"T": -0.5, "U": -9999.0},
            {"h": -0.5, "i": -9999.0},
            {"e": -0.5, "f": -9999.0},
        ],
        "text_offset": [0, 1, 2],
    }


def test_text_offset_runs_on_over_the_chunks_of_a_stream(client: TestClient) -> None:
    body = completion_body(max_tokens=3, logprobs=0, stream=True)
    chunks = events(client.post(COMPLETIONS, json=body).text)
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [item["text_offset"] for item in logprobs] == [[0], [1], [2]]
    assert [item["top_logprobs"] for item in logprobs] == [None, None, None]


def test_token_ids_on_request(client: TestClient) -> None:
    body = completion_body(max_tokens=3, return_token_ids=True)
    choice = client.post(COMPLETIONS, json=body).json()["choices"][0]
    assert bytes(choice["token_ids"]) == b"The"
    assert bytes(choice["prompt_token_ids"]) == b"Hello"
    chunks = events(client.post(COMPLETIONS, json={**body, "stream": True}).text)
    assert [bytes(chunk["choices"][0]["token_ids"]) for chunk in chunks] == [b"T", b"h", b"e"]
    assert ["prompt_token_ids" in chunk["choices"][0] for chunk in chunks] == [True, False, False]


def test_request_over_model_defaults_over_openais(client: TestClient, engine: FakeEngine) -> None:
    engine.generation = GenerationDefaults(temperature=0.25, top_k=7)
    client.post(COMPLETIONS, json=completion_body(temperature=0.5, top_k=None))
    params = engine.calls[0][1]
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 1.0)


def test_every_sampling_field_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    fields = {
        "n": 2,
        "max_tokens": 9,
        "min_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 5,
        "min_p": 0.125,
        "seed": 42,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "logprobs": 3,
        "prompt_logprobs": 2,
        "skip_special_tokens": False,
    }
    lists = {"stop": ["x", "yy"], "stop_token_ids": [7, 8]}
    body = completion_body(**fields, **lists, logit_bias={"5": 1.5})
    assert client.post(COMPLETIONS, json=body).status_code == 200
    params = engine.calls[0][1]
    assert {name: getattr(params, name) for name in fields} == fields
    assert {name: list(getattr(params, name)) for name in lists} == lists
    assert params.logit_bias == {5: 1.5}


def test_unknown_fields_are_ignored_and_named(client: TestClient) -> None:
    body = completion_body(user="me", a_field=1, nothing=None, stream=True, stream_options={"x": 1})
    answer = client.post(COMPLETIONS, json=body)
    assert answer.headers["X-Ignored-Fields"] == "user, a_field, stream_options.x"


def test_ignored_fields_cannot_forge_a_header(client: TestClient) -> None:
    fields = {"a\r\nSet-Cookie: x": 1, "ü": 1, **{f"f{i}": 1 for i in range(1000)}}
    answer = client.post(COMPLETIONS, json=completion_body(**fields))
    assert answer.status_code == 200
    assert answer.headers["X-Ignored-Fields"] == ", ".join(f"f{i}" for i in range(32))


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "echo": False, "suffix": None, "tools": []},
        {"response_format": {"type": "text"}},
    ],
)
def test_unserved_fields_that_ask_for_nothing_pass(
    client: TestClient, fields: dict[str, Any]
) -> None:
    assert client.post(COMPLETIONS, json=completion_body(**fields)).status_code == 200


def test_cache_salt_separates_and_is_never_the_raw_text(
    client: TestClient, engine: FakeEngine
) -> None:
    for salt in (None, "a", "b", "a"):
        client.post(COMPLETIONS, json=completion_body(cache_salt=salt))
    salts = [call[2] for call in engine.calls]
    assert salts[0] == b""
    assert salts[1] == salts[3] != salts[2]
    assert len(salts[1]) == 32
