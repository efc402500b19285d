"""Fields that say what an answer must look like, and which tokens it may have."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body
from tests.support.fake_engine import FakeEngine

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": FORMAT}, "response_format"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs"),
    ({"structured_outputs": {"json": '{"type": "object"}'}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": True}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "structured_outputs"),
    ({"guided_json": SCHEMA}, "guided_json"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"guided_grammar": 'start: "a"'}, "guided_grammar"),
]


@pytest.mark.parametrize(("fields", "name"), FIELDS)
def test_both_endpoints_pass_it_on(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], name: str
) -> None:
    for path, body in ((COMPLETIONS, completion_body), (CHAT, chat_body)):
        answer = client.post(path, json=body(max_tokens=1, **fields))
        assert (answer.status_code, "x-ignored-fields" in answer.headers) == (200, False)
    specs = [call[1].structured_outputs for call in engine.calls]
    assert specs[0] == specs[1]
    assert specs[0] is not None
    assert specs[0].field == name


@pytest.mark.parametrize("fields", [{"response_format": {"type": "text"}}, {"guided_json": None}])
def test_nothing_asked_for_is_nothing_done(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    assert client.post(CHAT, json=chat_body(max_tokens=1, **fields)).status_code == 200
    assert engine.calls[0][1].structured_outputs is None


def test_a_model_without_an_end_cannot_be_held(client: TestClient, engine: FakeEngine) -> None:
    engine.info = type(engine.info)(
        **{f: getattr(engine.info, f) for f in engine.info.__struct_fields__}
        | {"eos_token_ids": []}
    )
    answer = client.post(CHAT, json=chat_body(guided_regex="a"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "guided_regex")


def test_tokens_and_words_are_passed_on(client: TestClient, engine: FakeEngine) -> None:
    body = completion_body(allowed_token_ids=[1, 2], bad_words=["no", "way"], max_tokens=1)
    assert client.post(COMPLETIONS, json=body).status_code == 200
    params = engine.calls[0][1]
    assert (params.allowed_token_ids, params.bad_words) == ((1, 2), ("no", "way"))


@pytest.mark.parametrize(("limit", "kept"), [(3, "890"), (100, "1234567890"), (-1, "1234567890")])
def test_the_end_of_a_long_prompt_can_be_kept(client: TestClient, limit: int, kept: str) -> None:
    body = completion_body(
        prompt="1234567890", truncate_prompt_tokens=limit, return_token_ids=True, max_tokens=1
    )
    choice = client.post(COMPLETIONS, json=body).json()["choices"][0]
    assert bytes(choice["prompt_token_ids"]).decode() == kept


def test_minus_one_keeps_what_the_context_holds(client: TestClient) -> None:
    body = completion_body(prompt="x" * 5000, truncate_prompt_tokens=-1, max_tokens=5)
    answer = client.post(COMPLETIONS, json=body).json()
    assert answer["usage"]["prompt_tokens"] == 999


LARGE: Any = [str(number) for number in range(100_000)]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"structured_outputs": {"choice": LARGE}}, "structured_outputs"),
        ({"guided_choice": LARGE}, "guided_choice"),
        ({"guided_json": {"enum": LARGE}}, "guided_json"),
        ({"response_format": {**FORMAT, "more": LARGE}}, "response_format"),
        ({"tools": LARGE}, "tools"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_description_beyond_all_bounds_is_refused_by_its_size_alone(
    client: TestClient, fields: dict[str, Any], name: str
) -> None:
    for path, body in ((COMPLETIONS, completion_body), (CHAT, chat_body)):
        answer = client.post(path, json=body(**fields))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", name)
        assert "bytes are more than 524288" in error["message"]


def test_a_long_prompt_beside_a_description_is_none(client: TestClient) -> None:
    """Its length is told, not the description's."""
    body = completion_body(prompt="x" * 600_000, structured_outputs={"choice": ["a", "b"]})
    answer = client.post(COMPLETIONS, json=body)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("body", [[1] * 300_000, "x" * 600_000])
def test_a_large_body_that_is_no_object_is_one_error_all_the_same(
    client: TestClient, body: Any
) -> None:
    answer = client.post(COMPLETIONS, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
