"""Whatever a client sends, it gets a clear 4xx, and the next good request is served."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, make_client
from tests.support.fake_engine import FakeEngine

JSON = {"content-type": "application/json"}
DEEP = b'{"model":"fake","prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

NOT_JSON = {
    "not json": b"hello",
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "string": b'"text"',
    "trailing bytes": b'{"model":"fake","prompt":"x"} x',
    "two documents": b'{"model":"fake","prompt":"x"}{}',
    "bad utf-8": b'{"model":"fake","prompt":"\xff"}',
    "lone surrogate": b'{"model":"fake","prompt":"\\ud800"}',
    "byte order mark": b'\xef\xbb\xbf{"model":"fake","prompt":"x"}',
    "NaN": b'{"model":"fake","prompt":"x","temperature":NaN}',
    "NaN in an unknown field": b'{"model":"fake","prompt":"x","unknown":NaN}',
    "Infinity": b'{"model":"fake","prompt":"x","temperature":-Infinity}',
    "1e400": b'{"model":"fake","prompt":"x","temperature":1e400}',
    "5,000 digits": b'{"model":"fake","prompt":"x","seed":' + b"9" * 5000 + b"}",
    "deep nesting": DEEP,
}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def tool(name: str = "f", parameters: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


# (fields of the request, the field that the answer names)
BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 101}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**70}, "seed"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": "16"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": -101}}, "logit_bias"),
    ({"logit_bias": {"259": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"one": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(300_000)}}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x", ""]}, "stop"),
    ({"stop": "x" * 1_000_000}, "stop"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stop_token_ids": [259]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ({"priority": 2**40}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": "x" * 1_000_000}, "model"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"logits_processors": ["x"]}, "logits_processors"),
    ({"kv_transfer_params": {}}, "kv_transfer_params"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": ["x"] * 257}, "bad_words"),
    ({"bad_words": "x"}, "bad_words"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [259]}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": schema_format({"type": "banana"})}, "response_format"),
    ({"response_format": schema_format({"type": "string", "pattern": "("})}, "response_format"),
    ({"response_format": schema_format({"enum": list(range(100_000))})}, "response_format"),
    ({"response_format": schema_format({"description": "x" * 70_000})}, "response_format"),
    ({"response_format": schema_format({"$ref": "file:///etc/passwd"})}, "response_format"),
    ({"response_format": schema_format(nested(100))}, "response_format"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    (
        {"response_format": {"type": "json_object"}, "allowed_token_ids": [1]},
        "allowed_token_ids",
    ),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": r"[^\s\S]"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs"),
    ({"structured_outputs": {"choice": [str(i) for i in range(2001)]}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs"),
    ({"structured_outputs": {"json": '{"a":' * 2000 + "1" + "}" * 2000}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "{{{"}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": 'start: start "a"'}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "root ::= " + "(" * 30_000}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: <|im_start|>"}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs"),
    ({"guided_json": {"type": 5}}, "guided_json"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_grammar": "?"}, "guided_grammar"),
]
BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    *BAD_SAMPLING,
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"text": "x"}}, "prompt"),
    ({"prompt": 1}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["x", ""]}, "prompt"),
    ({"prompt": ["x", 1]}, "prompt"),
    ({"prompt": [[1], "x"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [259]}, "prompt"),
    ({"prompt": [2**63]}, "prompt"),
    ({"prompt": [2**64]}, "prompt"),
    ({"prompt": ["x"] * 1_000_000}, "prompt"),
    ({"prompt": ["x"] * 600}, "n"),
    ({"prompt": ["x"] * 5, "n": 128}, "n"),
    ({"tools": [tool()]}, "tools"),
    ({"echo": 1}, "echo"),
    ({"echo": False, "max_tokens": 0}, "max_tokens"),
    ({"echo": True, "max_tokens": 0, "min_tokens": 1}, "min_tokens"),
    ({"echo": True, "logprobs": 0, "stream": True}, "echo"),
    ({"suffix": "end"}, "suffix"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
]


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BANANA = {"type": "object", "properties": {"a": {"type": "banana"}}}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    *BAD_SAMPLING,
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": ["Hello"]}, "messages"),
    ({"messages": user("x") * 1025}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": user(None)}, "messages"),
    ({"messages": user([])}, "messages"),
    ({"messages": user(1)}, "messages"),
    ({"messages": user([{"type": "text"}])}, "messages"),
    ({"messages": user([{"type": "image_url", "image_url": {"url": "x"}}])}, "messages"),
    ({"messages": user([{"type": "input_audio", "input_audio": {}}])}, "messages"),
    ({"messages": user([{"type": "file", "file": {}}])}, "messages"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages"),
    ({"tools": {}}, "tools"),
    ({"tools": [{}]}, "tools"),
    ({"tools": [tool(f"f{i}") for i in range(1000)]}, "tools"),
    ({"tools": [tool("f"), tool("f")]}, "tools"),
    ({"tools": [tool("a b")]}, "tools"),
    ({"tools": [tool("a\n")]}, "tools"),
    ({"tools": [tool("a\x00b")]}, "tools"),
    ({"tools": [tool("x" * 65)]}, "tools"),
    ({"tools": [tool(parameters="x")]}, "tools"),
    ({"tools": [tool(parameters={"type": "array"})]}, "tools"),
    ({"tools": [tool(parameters=nested(100))]}, "tools"),
    ({"tools": [tool(parameters=BANANA)], "tool_choice": "required"}, "tools"),
    ({"tools": [tool(parameters=BANANA, strict=True)]}, "tools"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": tool("g")}, "tool_choice"),
    ({"tools": [], "tool_choice": tool("g")}, "tool_choice"),
    (
        {
            "tools": [tool()],
            "tool_choice": "required",
            "response_format": {"type": "json_object"},
        },
        "response_format",
    ),
    ({"tools": [tool()], "guided_regex": "a"}, "guided_regex"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"functions": [{"name": "f"}]}, "functions"),
]


@pytest.fixture(scope="module")
def served() -> tuple[TestClient, FakeEngine]:
    engine = FakeEngine()
    return make_client(engine), engine


@pytest.fixture
def engine(served: tuple[TestClient, FakeEngine]) -> FakeEngine:
    served[1].calls.clear()
    return served[1]


@pytest.fixture
def client(served: tuple[TestClient, FakeEngine], engine: FakeEngine) -> TestClient:
    """One server for all bad input: what it got before must not matter."""
    return served[0]


def case_name(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 70 else f"{text[:60]}… ({len(text)})"


def assert_still_serves(client: TestClient) -> None:
    good = client.post(COMPLETIONS, json=completion_body(max_tokens=3))
    assert (good.status_code, good.json()["choices"][0]["text"]) == (200, "The")


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_body_that_is_no_strict_json_object_is_a_400(
    client: TestClient, path: str, body: bytes
) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert_still_serves(client)


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETIONS, ids=case_name)
def test_bad_completion_request_is_a_400_that_names_the_field(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    answer = client.post(COMPLETIONS, json=completion_body(**fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.calls == []
    assert_still_serves(client)


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=case_name)
def test_bad_chat_request_is_a_400_that_names_the_field(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    answer = client.post(CHAT, json=chat_body(**fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.calls == []
    assert_still_serves(client)


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_missing_field_is_named(client: TestClient, field: str) -> None:
    body = completion_body()
    del body[field]
    error = client.post(COMPLETIONS, json=body).json()["error"]
    assert (error["param"], error["code"]) == (field, "missing_required_parameter")


def test_unknown_model_is_a_404(client: TestClient) -> None:
    answer = client.post(COMPLETIONS, json=completion_body(model="other"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_too_much_work_in_one_request_is_refused_as_a_product(client: TestClient) -> None:
    prompts = ["x"] * 4
    assert client.post(COMPLETIONS, json=completion_body(prompt=prompts, n=128)).status_code == 200
    answer = client.post(COMPLETIONS, json=completion_body(prompt=[*prompts, "x"], n=128))
    assert answer.json()["error"]["param"] == "n"


def test_prompt_beyond_the_context_says_both_numbers(client: TestClient) -> None:
    error = client.post(COMPLETIONS, json=completion_body(prompt="x" * 1234)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length" in error["message"]
    assert "1000" in error["message"]
    assert "1234" in error["message"]


def test_too_large_max_tokens_is_no_error(client: TestClient) -> None:
    answer = client.post(COMPLETIONS, json=completion_body(max_tokens=10_000))
    assert answer.status_code == 200


def test_whole_vocabulary_may_be_biased(client: TestClient, engine: FakeEngine) -> None:
    bias = {str(i): -100 for i in range(259)}
    assert client.post(COMPLETIONS, json=completion_body(logit_bias=bias)).status_code == 200
    assert engine.calls[0][1].logit_bias == dict.fromkeys(range(259), -100.0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("BREW", "/health", 405),
    ],
)
def test_wrong_address_gets_the_one_error_body(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, f"http://localhost{path}")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", COMPLETIONS, "POST"),
        ("PUT", "/ping", "GET, HEAD, POST"),
        ("PUT", "/v1/files", "GET, POST"),
        ("PUT", "/v1/files/x", "DELETE, GET"),
        ("DELETE", "/v1/models/x/y", "GET"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_wrong_method_is_told_every_right_one(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_form_sent_by_a_wrong_method_is_told_so(client: TestClient) -> None:
    assert client.put("/v1/files", files={"file": b"x"}).status_code == 405


def test_error_messages_do_not_echo_a_long_input(client: TestClient) -> None:
    answer = client.post(
        COMPLETIONS, json=completion_body(model="x" * 250, temperature="y" * 10**6)
    )
    assert len(answer.content) < 2000
