"""No body whatsoever is answered with a 5xx."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsa_api.schemas import ChatCompletionRequest, CompletionRequest
from nsa_api.validation import REFUSED_UNLESS
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, make_client
from tests.support.fake_engine import FakeEngine
from tests.support.mutations import Edit, edits, mutated

FIELDS = sorted({*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields}) + sorted(
    REFUSED_UNLESS
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "1", "x"]), inner)
    ),
    max_leaves=8,
)
CASES = [(COMPLETIONS, completion_body()), (CHAT, chat_body())]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]+$"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, completion_body(max_tokens=5, stop=["x"], logit_bias={"1": 1}, seed=7)),
    (COMPLETIONS, completion_body(prompt=[[1, 2], [3]], n=2, logprobs=3, temperature=0.5)),
    (COMPLETIONS, completion_body(structured_outputs={"regex": "[ab]+(c|d)?"}, max_tokens=3)),
    (CHAT, chat_body(stream=True, stream_options={"include_usage": True}, max_tokens=5)),
    (
        CHAT,
        chat_body(tools=[TOOL], tool_choice="auto", top_logprobs=2, logprobs=True, max_tokens=5),
    ),
    (
        CHAT,
        chat_body(
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        ),
    ),
    ("/tokenize", {"prompt": "Hello", "return_token_strs": True}),
    ("/tokenize", {"messages": chat_body()["messages"], "tools": [TOOL]}),
    ("/detokenize", {"tokens": [1, 2, 3], "model": "fake"}),
    (
        "/v1/batches",
        {
            "input_file_id": "file-1",
            "endpoint": COMPLETIONS,
            "completion_window": "24h",
            "metadata": {"name": "x"},
        },
    ),
]
MANY = 1000
ENCODED = [(path, msgspec.json.encode(body)) for path, body in BODIES]
FORM_HEADERS = {"content-type": "multipart/form-data; boundary=-x-"}
FORM = (
    b'---x-\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'---x-\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
    b"Content-Type: application/jsonl\r\n\r\n" + b'{"custom_id":"a"}\n' * 3 + b"\r\n---x---\r\n"
)


def drawn(count: int) -> settings:
    """So many examples, few always the same; those that fail are made small, none are kept."""
    return settings(
        max_examples=count,
        derandomize=count < MANY,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A server whose model has a short context, so that no request takes long."""
    engine = FakeEngine()
    engine.info = msgspec.structs.replace(engine.info, max_model_len=500)
    return make_client(engine, batch_dir=str(tmp_path_factory.mktemp("batches")))


@pytest.fixture(autouse=True)
def quiet(small: TestClient, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test sent, the next good request is served and nothing unforeseen was logged."""
    yield
    assert small.post(COMPLETIONS, json=completion_body()).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


def post(client: TestClient, path: str, body: bytes) -> tuple[int, str | None]:
    """The status, and the error's code if there is one."""
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    refused = answer.status_code != 200
    return answer.status_code, answer.json()["error"]["code"] if refused else None


@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_values_of_known_fields(small: TestClient, count: int) -> None:
    @drawn(count)
    @given(case=st.sampled_from(CASES), fields=st.dictionaries(st.sampled_from(FIELDS), VALUES))
    def check(case: tuple[str, dict[str, Any]], fields: dict[str, Any]) -> None:
        path, body = case
        assert post(small, path, msgspec.json.encode({**body, **fields}))[0] in (200, 400, 404)

    check()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_mutation_of_the_bytes(small: TestClient, count: int) -> None:
    codes: Counter[str | None] = Counter()

    @drawn(count)
    @given(st.sampled_from(ENCODED).flatmap(lambda c: st.tuples(st.just(c), edits(c[1]))))
    def check(drawn: tuple[tuple[str, bytes], list[Edit]]) -> None:
        (path, body), changes = drawn
        status, code = post(small, path, mutated(body, changes))
        codes[code] += 1
        assert status in (200, 400, 404)

    check()
    print(codes)
    assert codes["invalid_json"] < count  # the others came further than to the parser
    assert codes[None] or count < MANY


def test_the_bodies_that_are_mutated_are_good(small: TestClient) -> None:
    statuses = [post(small, path, body)[0] for path, body in ENCODED]
    assert statuses == [200] * 9 + [404]  # no such file


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_mutation_of_an_upload(small: TestClient, count: int) -> None:
    statuses: Counter[int] = Counter()

    @drawn(count)
    @given(edits(FORM))
    def check(changes: list[Edit]) -> None:
        answer = small.post("/v1/files", content=mutated(FORM, changes), headers=FORM_HEADERS)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400)
        if answer.status_code == 200:
            assert small.delete(f"/v1/files/{answer.json()['id']}").status_code == 200

    check()
    print(statuses)
    assert set(statuses) == {200, 400}
    assert small.get("/v1/files").json()["data"] == []
