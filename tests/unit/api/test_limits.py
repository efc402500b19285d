"""What is refused before a route sees it: heads, hosts, bodies."""

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.support.api import COMPLETIONS, completion_body, make_client
from tests.support.fake_engine import FakeEngine

JSON = {"content-type": "application/json"}


def test_request_id_is_echoed(client: TestClient) -> None:
    answer = client.get("/health", headers={"X-Request-Id": "My-id_1.2"})
    assert answer.headers["X-Request-Id"] == "My-id_1.2"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "<script>", "é".encode("latin-1")])
def test_unfit_request_id_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/health", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


def test_error_answers_have_a_request_id(client: TestClient, engine: FakeEngine) -> None:
    engine.failure = ZeroDivisionError()
    for answer in (client.get("/no"), client.post(COMPLETIONS, json=completion_body())):
        assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "x/a?", "", "127.0.0.1:x", "localhost:1:2"]
)
def test_foreign_host_is_refused_on_a_loopback_bind(client: TestClient, host: str) -> None:
    answer = client.get("/v1/models", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"])
def test_loopback_names_are_accepted(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_hosts_can_be_allowed(engine: FakeEngine) -> None:
    client = make_client(engine, allowed_hosts=("my.host",))
    assert client.get("/health", headers={"Host": "my.host:80"}).status_code == 200


def test_any_host_is_accepted_on_a_public_bind(engine: FakeEngine) -> None:
    client = make_client(engine, host="0.0.0.0")
    assert client.get("/health", headers={"Host": "any.example"}).status_code == 200


def test_too_many_or_too_large_headers_are_a_431(client: TestClient) -> None:
    many = {f"x-{i}": "1" for i in range(101)}
    assert client.get("/health", headers=many).status_code == 431
    assert client.get("/health", headers={"x": "1" * 40_000}).status_code == 431


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json, text/plain"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_other_content_is_a_415(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post(COMPLETIONS, content=b"{}", headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_content_types_pass(client: TestClient, content_type: str) -> None:
    body = b'{"model":"fake","prompt":"x"}'
    answer = client.post(COMPLETIONS, content=body, headers={"content-type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit_holds_with_and_without_content_length(
    engine: FakeEngine, chunked: bool
) -> None:
    client = make_client(engine, max_body_bytes=1000)
    frame = b'{"model":"fake","prompt":""}'

    def status(size: int) -> int:
        body = frame[:-2] + b"x" * (size - len(frame)) + frame[-2:]

        def pieces() -> Iterator[bytes]:
            yield body[:500]
            yield body[500:]

        content = pieces() if chunked else body
        return client.post(COMPLETIONS, content=content, headers=JSON).status_code

    assert (status(900), status(1001), status(100_000)) == (200, 413, 413)
