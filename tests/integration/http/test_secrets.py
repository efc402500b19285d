"""Requests with a secret each, over shared prefixes and several keys: nothing passes between them.

The stand-in's answer is a function of the whole prompt, read back through the page table, so an
answer that saw another request's page is another text.
"""

import random
from collections import defaultdict
from collections.abc import Iterator

import aiohttp
import pytest

from tests.support.http_load import gather, run_load
from tests.support.http_server import ServerProcess, run_server
from tests.support.openai_client import expected_text

KEYS = ("key-a", "key-b", "key-c")
PAGE = 16
PREFIXES = tuple((f"{name} " * 40)[: 10 * PAGE] for name in ("alpha", "beta", "gamma", "delta"))
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    engine = {"block_size": PAGE, "num_pages": 600, "max_num_seqs": 32}
    with run_server(settings={"api_keys": KEYS}, engine=engine) as server:
        yield server


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_secret_and_no_page_crosses_a_key_or_a_salt(server: ServerProcess, count: int) -> None:
    rng = random.Random(count)
    draws = [
        (rng.choice(KEYS), rng.choice([None, "mine"]), rng.choice(PREFIXES), rng.getrandbits(64))
        for _ in range(count)
    ]
    seen: set[tuple[str, str | None, str]] = set()
    hits: dict[str, int] = defaultdict(int)

    async def ask(session: aiohttp.ClientSession, i: int) -> int:
        key, salt, prefix, secret = draws[i]
        prompt = f"{prefix}{secret:016x}"
        body = {"model": "stand-in", "prompt": prompt, "max_tokens": NUM_TOKENS}
        headers = {"Authorization": f"Bearer {key}"}
        salted = {**body, "cache_salt": f"{salt}{count}"}  # a world of its own for each test
        async with session.post("/v1/completions", json=salted, headers=headers) as answer:
            given = await answer.json()
        assert answer.status == 200, given
        assert given["choices"][0]["text"] == expected_text(prompt, NUM_TOKENS)
        cached: int = given["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached <= len(prefix)
        return cached

    async def main(session: aiohttp.ClientSession) -> None:
        # The first of each kind one by one: whatever it finds in the cache is foreign.
        rest = []
        for i, (key, salt, prefix, _) in enumerate(draws):
            if (key, salt, prefix) in seen:
                rest.append(i)
            else:
                seen.add((key, salt, prefix))
                assert await ask(session, i) == 0
        cached = await gather(len(rest), 32, lambda j: ask(session, rest[j]))
        for i, num_cached in zip(rest, cached, strict=True):
            hits[draws[i][0]] += num_cached > 0

    run_load(server, main)
    assert len(seen) == len(KEYS) * 2 * len(PREFIXES)
    assert all(hits[key] > 0 for key in KEYS)
    assert server.process.poll() is None
