"""A request that takes too long ends with a 504, and what it held is free."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from nsa_serve.engine.stand_in import expected_continuation
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.http_server import ServerProcess, run_server, wait_until

ALLOWED = 1.2
URL = "/v1/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One sequence at a time, 20 tokens a second."""
    settings = {"request_timeout": ALLOWED, "batch_dir": str(tmp_path_factory.mktemp("batches"))}
    engine = {"max_num_seqs": 1}
    with run_server(
        settings=settings, engine=engine, stand_in={"step_seconds": 0.05}, json_log=True
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(server: ServerProcess) -> Iterator[None]:
    yield
    wait_until(lambda: server.metric("num_requests_running") == 0, 2)
    assert server.metric("num_requests_waiting") == 0
    assert server.metric("kv_cache_usage_perc") == 0
    assert ask(server, max_tokens=1).status_code == 200


def ask(server: ServerProcess, timeout: str | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "stand-in", "prompt": "x", **fields}
    headers = {} if timeout is None else {"X-Request-Timeout": timeout}
    return server.http.post(URL, json=body, headers=headers)


def assert_late(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (504, "false")
    assert answer.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"prompt": ["x", "y"]}, {"structured_outputs": {"regex": "a{1000}"}}]
)
def test_an_answer_that_takes_too_long_is_a_504(
    server: ServerProcess, fields: dict[str, Any]
) -> None:
    started = time.monotonic()
    assert_late(ask(server, max_tokens=500, **fields))
    assert time.monotonic() - started < ALLOWED + 3


def test_a_stream_ends_with_the_error_behind_what_was_made(server: ServerProcess) -> None:
    body = {"model": "stand-in", "prompt": "x", "max_tokens": 500, "stream": True}
    with server.http.stream("POST", URL, json=body) as answer:
        assert answer.status_code == 200
        events = [line[6:] for line in answer.iter_lines() if line]
    *chunks, error, done = events
    assert done == "[DONE]"
    assert msgspec.json.decode(error)["error"]["code"] == "deadline_exceeded"
    text = "".join(msgspec.json.decode(chunk)["choices"][0]["text"] for chunk in chunks)
    whole = Tokenizer.byte_level().decode(expected_continuation(b"x", 500))
    assert 1 <= len(text) < 30
    assert whole.startswith(text)


def test_time_in_the_queue_counts(server: ServerProcess) -> None:
    body = {"model": "stand-in", "prompt": "x", "max_tokens": 500, "stream": True}
    with server.http.stream("POST", URL, json=body) as running:
        lines = running.iter_lines()
        next(lines)
        assert_late(ask(server, "0.1", max_tokens=1))
        assert "deadline_exceeded" not in next(line for line in lines if line)


def test_a_client_may_ask_for_less_but_not_for_more(server: ServerProcess) -> None:
    for asked, kept in (("0.2", 0.2), ("1e9", ALLOWED)):
        answer = ask(server, asked, max_tokens=500)
        assert_late(answer)
        assert f"within {kept} s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("timeout", ["", "soon", "0", "-1", "nan", "inf", "1e999", "٣", "1 s"])
def test_a_time_that_is_none_is_refused(server: ServerProcess, timeout: str) -> None:
    answer = server.http.post(
        URL,
        json={"model": "stand-in", "prompt": "x"},
        headers=[(b"X-Request-Timeout", timeout.encode())],
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Timeout"


def test_openais_client_does_not_try_again(server: ServerProcess) -> None:
    def num_late() -> int:
        return server.output().count("DeadlineError")

    before = num_late()
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client,
        pytest.raises(openai.InternalServerError) as late,
    ):
        client.completions.create(model="stand-in", prompt="x", max_tokens=500)
    assert late.value.status_code == 504
    wait_until(lambda: num_late() > before, 5)
    assert num_late() == before + 1


def test_lines_of_a_batch_may_wait(server: ServerProcess) -> None:
    line = {
        "custom_id": "x",
        "method": "POST",
        "url": URL,
        "body": {"model": "stand-in", "prompt": "x", "max_tokens": 30},
    }
    http = server.http
    files = {"file": msgspec.json.encode(line)}
    file_id = http.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
    batch = http.post("/v1/batches", json=asked).json()
    path = f"/v1/batches/{batch['id']}"
    wait_until(lambda: http.get(path).json()["status"] == "completed", 10)
    assert http.get(path).json()["request_counts"]["completed"] == 1
