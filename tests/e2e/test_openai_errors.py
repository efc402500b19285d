"""Errors as the unmodified `openai` package raises them, and what it tries again."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.support.http_load import series, total
from tests.support.http_server import ServerProcess, children, free_port, run_server, wait_until
from tests.support.http_streams import Streams
from tests.support.openai_client import MODEL, client_of, expected_text

KEY = "a-key"
QUESTION: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    settings = {"api_keys": [KEY], "max_body_bytes": 100_000}
    with run_server(settings=settings, engine={"max_model_len": 512}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(server, key=KEY) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs"),
    ],
)
def test_a_bad_field_is_a_bad_request_that_names_it(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(**{"model": MODEL, "prompt": "x", **fields})
    assert (bad.value.status_code, bad.value.type) == (400, "invalid_request_error")
    assert bad.value.param is not None
    assert bad.value.param.split(".")[0] == param
    assert bad.value.request_id


def test_a_prompt_beyond_the_context_tells_both_lengths(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="x" * 600)
    assert bad.value.code == "context_length_exceeded"
    for part in ("maximum context length", "512", "600"):
        assert part in bad.value.message


def test_each_status_is_raised_as_its_class(client: openai.OpenAI, server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=MODEL, prompt="x" * 200_000)
    assert large.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as typed:
        client.post(
            "/completions",
            cast_to=object,
            content=b"x",
            options={"headers": {"Content-Type": "text/plain"}},
        )
    assert typed.value.status_code == 415
    with client_of(server, key="wrong") as other, pytest.raises(openai.AuthenticationError) as key:
        other.models.list()
    assert key.value.response.headers["www-authenticate"].startswith("Bearer")


def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with client, pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_bad_requests_are_not_tried_again(server: ServerProcess) -> None:
    def num_bad() -> float:
        name = 'http_requests_total{handler="/v1/completions",method="POST",status="400"}'
        text = server.http.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        return float(lines.get(f"nsa_serve:{name}", 0))

    before = num_bad()
    with (
        client_of(server, key=KEY, max_retries=5) as client,
        pytest.raises(openai.BadRequestError),
    ):
        client.completions.create(model=MODEL, prompt="x", n=0)
    assert num_bad() == before + 1


FULL = {"max_num_seqs": 2, "max_num_queued_reqs": 2}


def test_a_full_queue_is_a_rate_limit_that_retries_pass() -> None:
    """By default the client waits for what Retry-After says and tries twice more."""
    with run_server(engine=FULL, stand_in={"step_seconds": 0.01}) as server:
        streams = Streams(server, 2, max_tokens=8000)
        with client_of(server) as once, ThreadPoolExecutor(2) as pool:
            queued = [pool.submit(_complete, once, i) for i in range(2)]
            wait_until(lambda: server.http.get("/load").json()["server_load"] == 4)
            with pytest.raises(openai.RateLimitError) as full:
                once.completions.create(model=MODEL, prompt="x")
            assert full.value.code == "queue_full"
            assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
            streams.leave()
            assert [future.result() for future in queued] == _expected(2)
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as patient,
            ThreadPoolExecutor(8) as pool,
        ):
            texts = list(pool.map(lambda i: _complete(patient, i), range(8)))
        assert texts == _expected(8)


def _complete(client: openai.OpenAI, i: int) -> str:
    answer = client.completions.create(model=MODEL, prompt=f"Number {i}", max_tokens=10)
    return answer.choices[0].text


def _expected(count: int) -> list[str]:
    return [expected_text(f"Number {i}", 10) for i in range(count)]


def test_retries_outlast_the_death_of_the_engine() -> None:
    """A 503 while it is started anew; Retry-After lies within what the client waits for."""
    with run_server() as server:
        (engine,) = children(server.process.pid)
        os.kill(engine, signal.SIGKILL)
        with client_of(server, max_retries=2) as client:
            assert _complete(client, 1) == _expected(2)[1]


def test_a_draining_server_says_come_back() -> None:
    with run_server(stand_in={"step_seconds": 0.02}) as server, client_of(server) as client:
        streams = Streams(server, 1, max_tokens=100)
        server.signal()
        wait_until(lambda: server.http.get("/health/ready").status_code == 503)
        with pytest.raises(openai.InternalServerError) as draining:
            client.completions.create(model=MODEL, prompt="x")
        assert (draining.value.status_code, draining.value.code) == (503, "draining")
        assert int(draining.value.response.headers["retry-after"]) > 0
        streams.results()


def test_a_loading_server_is_waited_for() -> None:
    with run_server(until_ready=False) as server, client_of(server, max_retries=8) as client:
        assert _complete(client, 0) == _expected(1)[0]


@pytest.mark.slow
def test_a_burst_of_a_thousand_passes_with_the_retries_of_the_package() -> None:
    """At a queue of 64, before an engine that computes 80 a second at best."""

    async def main(server: ServerProcess) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            assert client.max_retries == 2

            async def one(i: int) -> str:
                answer = await client.completions.create(
                    model=MODEL, prompt=f"Number {i}", max_tokens=10
                )
                return answer.choices[0].text

            return list(await asyncio.gather(*map(one, range(1000))))

    engine = {"max_num_seqs": 16, "max_num_queued_reqs": 64}
    with run_server(engine=engine, stand_in={"step_seconds": 0.02}) as server:
        begun = time.monotonic()
        assert asyncio.run(main(server)) == _expected(1000)
        seconds = time.monotonic() - begun
        found = series(server)
    refused = total(found, "http_requests_total", status="429")
    assert refused > 100
    print(f"1,000 in {seconds:.1f} s, {refused:.0f} times refused")
