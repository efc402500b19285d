"""Liveness, readiness and the small endpoints."""

import time

import jinja2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nsa_api.state import ServerState
from nsa_serve import __version__
from tests.support.api import make_client
from tests.support.fake_engine import FakeEngine


def state_of(client: TestClient) -> ServerState:
    assert isinstance(client.app, FastAPI)
    state = client.app.state.server
    assert isinstance(state, ServerState)
    return state


@pytest.mark.parametrize("path", ["/health", "/health/live", "/ping"])
def test_alive_whatever_the_engine_does(path: str) -> None:
    assert make_client(None).get(path).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ping", "/metrics"])
def test_probes_may_ask_for_the_head_alone(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == 200
    assert make_client(None).head("/health/ready").status_code == 503


def test_ready_once_the_engine_is_loaded(engine: FakeEngine) -> None:
    client = make_client(None)
    assert client.get("/health/ready").json()["error"]["code"] == "starting"
    state_of(client).attach(engine)
    assert client.get("/health/ready").status_code == 200


def test_not_ready_while_draining(client: TestClient) -> None:
    state_of(client).draining = True
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert client.get("/health").status_code == 200


def test_not_ready_when_the_engine_is_dead(client: TestClient, engine: FakeEngine) -> None:
    engine.alive = False
    assert client.get("/health/ready").json()["error"]["code"] == "engine_dead"


def test_not_ready_when_work_waits_and_no_step_ends(engine: FakeEngine) -> None:
    client = make_client(engine, stuck_timeout=0.05)
    state = state_of(client)
    engine.last_step_time = time.monotonic() - 1000
    assert client.get("/health/ready").status_code == 200  # idle
    state.num_in_flight = 1
    assert client.get("/health/ready").json()["error"]["code"] == "stuck"
    engine.last_step_time = time.monotonic()
    assert client.get("/health/ready").status_code == 200


def test_version_and_models(engine: FakeEngine) -> None:
    client = make_client(engine, served_model_names=("main", "org/alias"))
    assert client.get("/version").json() == {"version": __version__}
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["main", "org/alias"]
    card = client.get("/v1/models/org/alias").json()
    assert {**card, "created": 0} == {
        "id": "org/alias",
        "object": "model",
        "created": 0,
        "owned_by": "nsa-serve",
        "root": "fake",
        "max_model_len": 1000,
    }
    assert client.get("/v1/models/fake").status_code == 404


def test_tokenize_and_back(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "abc", "return_token_strs": True}).json()
    assert answer == {
        "count": 3,
        "max_model_len": 1000,
        "tokens": [97, 98, 99],
        "token_strs": ["a", "b", "c"],
    }
    answer = client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert answer.json() == {"prompt": "abc"}
    messages = [{"role": "user", "content": "Hello"}]
    answer = client.post("/tokenize", json={"messages": messages})
    assert answer.json()["count"] > len("Hello")


def test_what_prompts_are_prepared_with_is_told(client: TestClient) -> None:
    info = client.get("/tokenizer_info").json()
    messages = [{"role": "user", "content": "Hello"}]
    template = jinja2.Environment().from_string(info["chat_template"])
    text = template.render(messages=messages, add_generation_prompt=True)
    answer = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert (
        answer["tokens"] == client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    )
    assert (info["eos_token"], info["bos_token"]) == ("<|im_end|>", None)
    assert info["model_max_length"] == 1000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}),
        ("/tokenize", {"prompt": 1}),
        ("/detokenize", {"tokens": [259]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "x"}),
    ],
)
def test_bad_tokenizer_requests_are_a_400(
    client: TestClient, path: str, body: dict[str, object]
) -> None:
    assert client.post(path, json=body).status_code == 400


def test_openapi_document_describes_requests_and_answers(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, request, answer in (
        ("/v1/completions", "CompletionRequest", "Completion"),
        ("/v1/chat/completions", "ChatCompletionRequest", "ChatCompletion"),
    ):
        operation = document["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{request}"}
        content = operation["responses"]["200"]["content"]
        assert content["application/json"]["schema"] == {"$ref": f"#/components/schemas/{answer}"}
        assert "text/event-stream" in content
        assert "422" not in operation["responses"]
        assert {request, answer, "ErrorResponse"} <= set(schemas)
    assert "/health/ready" in document["paths"]


def test_every_number_of_a_request_has_both_bounds(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    numbers = []
    for name in ("CompletionRequest", "ChatCompletionRequest"):
        for field, schema in schemas[name]["properties"].items():
            for kind in schema.get("anyOf", [schema]):
                if kind.get("type") in ("integer", "number"):
                    numbers.append(field)
                    assert {"minimum", "exclusiveMinimum"} & set(kind), field
                    assert "maximum" in kind, field
    assert len(numbers) > 25
