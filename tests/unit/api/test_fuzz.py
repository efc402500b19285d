"""No body whatsoever is answered with a 5xx."""

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
BODIES = [(COMPLETIONS, completion_body()), (CHAT, chat_body())]
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def small() -> TestClient:
    """A server whose model has a short context, so that no request takes long."""
    engine = FakeEngine()
    engine.info = msgspec.structs.replace(engine.info, max_model_len=48)
    return make_client(engine)


def post(client: TestClient, path: str, body: bytes) -> int:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    return int(answer.status_code)


@quick
@given(case=st.sampled_from(BODIES), fields=st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_any_values_of_known_fields(
    small: TestClient, case: tuple[str, dict[str, Any]], fields: dict[str, Any]
) -> None:
    path, body = case
    assert post(small, path, msgspec.json.encode({**body, **fields})) in (200, 400, 404)


@quick
@given(
    case=st.sampled_from(BODIES),
    cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5), st.binary(max_size=4))),
)
def test_any_mutation_of_the_bytes(
    small: TestClient, case: tuple[str, dict[str, Any]], cuts: list[tuple[int, int, bytes]]
) -> None:
    path, fields = case
    body = msgspec.json.encode({**fields, "max_tokens": 5, "stop": ["x"], "logit_bias": {"1": 1}})
    for start, length, piece in cuts:
        body = body[:start] + piece + body[start + length :]
    assert post(small, path, body) in (200, 400, 404)
