"""A server under load: clients that leave, a full queue, an engine that hangs or dies."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx
import pytest

from tests.support.api import events
from tests.support.http_load import gather, run_load
from tests.support.http_server import ServerProcess, children, run_server, wait_until
from tests.support.http_streams import PATH, Streams, body, error_code


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    limits = {"max_num_seqs": 4, "max_num_queued_reqs": 4, "enable_prefix_caching": False}
    with run_server(
        stand_in={"step_seconds": 0.02}, engine=limits, settings={"stuck_timeout": 0.5}
    ) as server:
        yield server


@pytest.fixture
def server(shared: ServerProcess) -> Iterator[ServerProcess]:
    """Whatever a test did, the next request is served and nothing runs on."""
    yield shared
    wait_until(lambda: shared.http.get("/load").json() == {"server_load": 0}, timeout=5)
    assert shared.http.post(PATH, json=body(max_tokens=1)).status_code == 200
    # The figures are those of the last step, which computed that one token.
    assert shared.metric("num_requests_running") == 0
    assert shared.metric("kv_cache_usage_perc") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_ends_its_request(server: ServerProcess, stream: bool) -> None:
    request = httpx.Request("POST", server.url + PATH, json=body(max_tokens=8000, stream=stream))
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    raw = f"POST {PATH} HTTP/1.1\r\n{headers}\r\n".encode() + request.read()
    for _ in range(10):
        with server.connect() as connection:
            connection.sendall(raw)
            wait_until(lambda: server.http.get("/load").json() == {"server_load": 1}, 5)
        wait_until(lambda: server.http.get("/load").json() == {"server_load": 0}, 1)


def test_burst_over_the_queue_is_refused_with_429(server: ServerProcess) -> None:
    def post(_: int) -> httpx.Response:
        return server.http.post(PATH, json=body())

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(post, range(40)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(answers) - len(refused) >= 8
    assert all(answer.headers["Retry-After"] for answer in refused)
    assert {error_code(answer) for answer in refused} == {"queue_full"}


@pytest.mark.slow
def test_a_burst_of_a_thousand_is_refused_at_once_but_for_what_the_queue_holds() -> None:
    engine = {"max_num_seqs": 16, "max_num_queued_reqs": 64}

    async def burst(session: aiohttp.ClientSession) -> list[tuple[int, int]]:
        async def one(i: int) -> tuple[int, int]:
            async with session.post(PATH, json=body(prompt=f"Number {i}", max_tokens=1)) as answer:
                await answer.read()
                return answer.status, int(answer.headers.get("Retry-After-Ms", 0))

        return await gather(1000, 1000, one)

    # The first step takes longer than the burst, so that nothing ends meanwhile.
    with run_server(engine=engine, stand_in={"step_seconds": 3.0}, json_log=True) as server:
        answers = run_load(server, burst)
        records = [json.loads(line) for line in server.output().splitlines() if line[:1] == "{"]
    assert Counter(status for status, _ in answers) == {200: 80, 429: 920}
    waits = [wait for status, wait in answers if status == 429]
    assert min(waits) >= 1000
    assert max(waits) <= 60_000
    assert len(set(waits)) > 100
    seconds = sorted(record["seconds"] for record in records if record.get("status") == 429)
    assert len(seconds) == 920
    median, p99 = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    print(f"920 of 1,000 refused: {1000 * median:.1f} ms (median), {1000 * p99:.1f} ms (99th)")
    assert p99 <= 0.05


def test_stuck_engine_is_not_ready(server: ServerProcess) -> None:
    (engine,) = children(server.process.pid)
    streams = Streams(server, 1, max_tokens=8000)
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: server.http.get("/health/ready").status_code == 503, timeout=5)
    assert error_code(server.http.get("/health/ready")) == "stuck"
    os.kill(engine, signal.SIGCONT)
    wait_until(lambda: server.http.get("/health/ready").status_code == 200, timeout=5)
    streams.leave()


def test_engine_death_is_told_and_healed(server: ServerProcess) -> None:
    (engine,) = children(server.process.pid)
    streams = Streams(server, 4, max_tokens=8000)
    killed = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    for text in streams.results():
        assert events(text)[-1]["error"]["code"] == "engine_dead"
    assert time.monotonic() - killed < 2
    wait_until(lambda: server.http.get("/health/ready").status_code == 200)
