"""After a thousand requests that end in every way, the metrics agree with what clients saw."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.support.http_load import gather, run_load, series, total
from tests.support.http_server import ServerProcess, run_server, wait_until

PATH = "/v1/completions"
KEY = {"Authorization": "Bearer key"}
END = 256
"""Of text: never among a stand-in's tokens, so that only those fail whose prompt has it."""
KINDS = ("whole", "stream", "several", "bad", "no model", "no key", "too long", "leaves", "fails")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with run_server(
        settings={"api_keys": ["key"]},
        engine={"max_num_seqs": 8, "max_num_queued_reqs": 8, "max_model_len": 512},
        stand_in={"step_seconds": 0.001, "nan_on": END},
    ) as server:
        yield server


def body(kind: str, i: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": "stand-in", "prompt": f"Number {i}", "max_tokens": 1 + i % 9}
    special: dict[str, dict[str, Any]] = {
        "stream": {"stream": True, "stream_options": {"include_usage": True}},
        "several": {"n": 3},
        "bad": {"temperature": -1},
        "no model": {"model": "other"},
        "too long": {"prompt": "x" * 1000},
        "leaves": {"max_tokens": 500, "stream": True},
        "fails": {"prompt": [65, END]},
    }
    return fields | special.get(kind, {})


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_sums_agree_and_gauges_return_to_nothing(server: ServerProcess, count: int) -> None:
    rng = random.Random(count)
    kinds = [rng.choice(KINDS) for _ in range(count)]
    before = series(server, KEY)
    statuses: Counter[int] = Counter()
    tokens: Counter[str] = Counter()
    left = 0

    async def ask(session: aiohttp.ClientSession, i: int) -> None:
        nonlocal left
        headers = {} if kinds[i] == "no key" else KEY
        async with session.post(PATH, json=body(kinds[i], i), headers=headers) as answer:
            statuses[answer.status] += 1
            if answer.status != 200:
                return
            if kinds[i] == "leaves":
                left += 1
                await answer.content.readany()
                answer.close()
                return
            text = await answer.text()
        if kinds[i] == "stream":
            usage = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
        else:
            usage = json.loads(text)
        tokens["prompt"] += usage["usage"]["prompt_tokens"]
        tokens["generated"] += usage["usage"]["completion_tokens"]
        tokens["choices"] += 3 if kinds[i] == "several" else 1

    async def main(session: aiohttp.ClientSession) -> None:
        await gather(count, 24, lambda i: ask(session, i))

    run_load(server, main)
    wait_until(lambda: server.http.get("/load", headers=KEY).json() == {"server_load": 0}, 10)
    # A step behind the last abort, whose figures are those of an idle engine.
    settled = {"model": "stand-in", "prompt": "x", "max_tokens": 1}
    assert server.http.post(PATH, json=settled, headers=KEY).status_code == 200
    after = series(server, KEY)

    def change(name: str, **labels: Any) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    statuses[200] += 1
    for status, seen in statuses.items():
        assert (
            change("http_requests_total", handler=PATH, status=status)
            + change("http_requests_total", handler="none", status=status)
            == seen
        ), status
    assert {200, 400, 401, 404, 500} <= set(statuses)
    assert change("request_success_total", finished_reason="length") == tokens["choices"] + 1
    assert change("request_success_total", finished_reason="abort") == left > 0
    finished = change("e2e_request_latency_seconds_count")
    assert finished == change("request_prompt_tokens_count")
    assert change("generation_tokens_total") >= tokens["generated"] + 1
    assert change("prompt_tokens_total") >= tokens["prompt"] + 1
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert total(after, gauge) == 0, gauge


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_invented_paths_and_methods_make_no_series(server: ServerProcess, count: int) -> None:
    rng = random.Random(count)

    async def ask(session: aiohttp.ClientSession, i: int) -> None:
        word = f"{rng.getrandbits(40):x}"
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "PROPFIND", f"X{word}".upper()])
        path = rng.choice([f"/{word}", f"/v1/models/{word}", f"/v1/files/{word}", f"/{word}/{i}"])
        with suppress(aiohttp.ClientResponseError):
            async with session.request(method, path, headers=KEY) as answer:
                assert answer.status in (400, 401, 404, 405), (method, path, answer.status)
                await answer.read()

    async def main(session: aiohttp.ClientSession) -> None:
        await gather(count, 32, lambda i: ask(session, i))

    run_load(server, main)
    assert len(series(server, KEY)) < 500
