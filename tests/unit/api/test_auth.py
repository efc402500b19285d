"""No route but the public ones is reached without a key."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nsa_api.auth import PUBLIC_PATHS
from nsa_api.page import FILES
from tests.support.api import COMPLETIONS, completion_body, make_client
from tests.support.fake_engine import FakeEngine

KEYS = ("first-key", "second-key")


@pytest.fixture
def locked(engine: FakeEngine) -> TestClient:
    return make_client(engine, api_keys=KEYS)


def test_every_route_needs_a_key_but_the_public_ones(locked: TestClient) -> None:
    assert isinstance(locked.app, FastAPI)
    paths = set(locked.app.openapi()["paths"])
    assert paths > PUBLIC_PATHS - FILES.keys()
    other = {
        "/docs",
        "/openapi.json",
        "/nowhere",
        "//health",
        "/health/",
        "/HEALTH",
        "/page",
        "/page/",
        "//",
    }
    for path in paths | other:
        for method in ("GET", "POST"):
            answer = locked.request(method, f"http://localhost{path}")
            assert (answer.status_code == 401) == (path not in PUBLIC_PATHS), path
            if answer.status_code == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_any_of_the_keys_opens(locked: TestClient, scheme: str, key: str) -> None:
    headers = {"Authorization": f"{scheme} {key}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "first-key", "Basic first-key", "Bearer first-ke", "Bearer x"],
)
def test_wrong_key_is_a_401(locked: TestClient, value: str) -> None:
    assert locked.get("/v1/models", headers={"Authorization": value}).status_code == 401


def test_key_in_the_query_does_not_count(locked: TestClient) -> None:
    assert locked.get("/v1/models?api_key=first-key&key=first-key").status_code == 401


def test_two_authorization_headers_do_not_count(locked: TestClient) -> None:
    headers = [("Authorization", "Bearer first-key"), ("Authorization", "Bearer x")]
    assert locked.get("/v1/models", headers=headers).status_code == 401


def test_salt_comes_from_the_key_whatever_the_body_says(
    locked: TestClient, engine: FakeEngine
) -> None:
    for key in (*KEYS, KEYS[0]):
        for salt in (None, "same"):
            headers = {"Authorization": f"Bearer {key}"}
            body = completion_body(cache_salt=salt)
            assert locked.post(COMPLETIONS, json=body, headers=headers).status_code == 200
    first, first_same, second, second_same, again, again_same = (c[2] for c in engine.calls)
    assert (first, first_same) == (again, again_same)
    assert len({first, first_same, second, second_same}) == 4
