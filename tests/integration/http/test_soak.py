"""Good requests for a long time, with bad ones and clients that leave among them: no memory is
lost, no good request fails, and a prompt has the same answer in the end as in the beginning."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tests.support.api import COMPLETIONS
from tests.support.http_load import run_load
from tests.support.http_server import ServerProcess, children, run_server, wait_until
from tests.support.openai_client import expected_text
from tests.support.refusals import MAX_MODEL_LEN, READ_TIMEOUT, REFUSALS
from tests.support.resident import resident

SECONDS = float(os.environ.get("NSA_SERVE_SOAK_SECONDS", "300"))
PLACES = 16
LEAVERS = 2
AT_ONCE = PLACES * 8 // 10 - LEAVERS
"""Good requests in flight; with the clients that leave, four fifths of the places."""
LARGEST_BAD = 100_000
MiB = 1 << 20
# To the byte vocabulary a prompt is one word, and some thousands of up to 256 bytes are kept: these
# are longer, so that memory settles at once.
PREFIXES = tuple((f"{name} " * 60)[:300] for name in ("alpha", "beta", "gamma", "delta"))
BAD = [
    (sent, refusal.status)
    for refusal in REFUSALS
    if refusal.status != 408
    for sent in refusal.sent
    if len(sent) < LARGEST_BAD
]


@dataclass
class Soak:
    """What happened."""

    server: ServerProcess
    until: float
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds, and the bytes that the API's process and the engine's have in memory."""

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    async def good(self, session: aiohttp.ClientSession, seed: int) -> None:
        """Good requests one after the other, by turns streamed."""
        rng = random.Random(seed)
        while self.goes_on:
            prompt = f"{rng.choice(PREFIXES)[: rng.randint(260, 300)]}{rng.getrandbits(64):x}"
            await self.ask(session, "good", prompt, rng.randint(1, 60))

    async def canary(self, session: aiohttp.ClientSession) -> None:
        """The same prompt again and again."""
        while self.goes_on:
            await self.ask(session, "canary", "The canary sings", 20)
            await asyncio.sleep(0.2)

    async def ask(
        self, session: aiohttp.ClientSession, name: str, prompt: str, num_tokens: int
    ) -> None:
        body = {"model": "fake", "prompt": prompt, "max_tokens": num_tokens, "temperature": 0}
        async with session.post(COMPLETIONS, json=body) as answer:
            given = await answer.json()
        if answer.status != 200:
            self.failures.append(f"{name}: {given}")
        elif given["choices"][0]["text"] != expected_text(prompt, num_tokens):
            self.failures.append(f"{name}: wrong text")
        self.count(name)

    async def leave(self, session: aiohttp.ClientSession, seed: int) -> None:
        """Clients that go away, at any moment, from streams and others."""
        rng = random.Random(seed)
        while self.goes_on:
            body = {"model": "fake", "prompt": "x" * rng.randint(1, 500), "max_tokens": 400}
            with suppress(TimeoutError):
                async with (
                    asyncio.timeout(rng.random() * 0.5),
                    session.post(
                        COMPLETIONS, json={**body, "stream": rng.random() < 0.7}
                    ) as answer,
                ):
                    await answer.read()
            self.count("left")

    async def attack(self) -> None:
        """Bad inputs, each of which gets its status."""
        rng = random.Random(0)
        while self.goes_on:
            sent, status = rng.choice(BAD)
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            with suppress(ConnectionError):
                writer.write(sent)
                answer = await reader.read()
                if not answer.startswith(f"HTTP/1.1 {status} ".encode()):
                    self.failures.append(f"bad: {sent[:200]!r}: {answer[:200]!r}")
            writer.close()
            self.count("bad")
            await asyncio.sleep(0.02)

    async def watch(self, began: float) -> None:
        """Note the memory once a second."""
        api = self.server.process.pid
        (engine,) = children(api)
        while self.goes_on:
            self.memory.append((time.monotonic() - began, resident(api), resident(engine)))
            await asyncio.sleep(1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    settings = {
        "read_timeout": READ_TIMEOUT,
        "api_keys": ["key"],
        "served_model_names": ["fake"],
        "batch_dir": str(tmp_path / "batches"),
    }
    engine = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": PLACES, "num_pages": 400}
    with run_server(settings=settings, engine=engine, stand_in={"step_seconds": 0.005}) as server:
        server.http.headers["Authorization"] = "Bearer key"
        yield server


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_wears_out(server: ServerProcess) -> None:
    began = time.monotonic()
    soak = Soak(server, began + SECONDS)

    async def work(session: aiohttp.ClientSession) -> None:
        session.headers["Authorization"] = "Bearer key"
        await asyncio.gather(
            *(soak.good(session, seed) for seed in range(AT_ONCE)),
            *(soak.leave(session, 100 + seed) for seed in range(LEAVERS)),
            soak.canary(session),
            soak.attack(),
            soak.watch(began),
        )

    run_load(server, work)
    wait_until(lambda: server.http.get("/load").json() == {"server_load": 0}, 5)
    assert soak.failures == []
    seconds, *processes = np.array(soak.memory).T
    settled = seconds > 0.4 * SECONDS
    slopes = [60 * np.polyfit(seconds[settled], rss[settled], 1)[0] / MiB for rss in processes]
    print(f"{SECONDS:.0f} s: {soak.counts}; MiB a minute of the API and the engine: {slopes}")
    assert max(slopes) < 1
    assert soak.counts["canary"] > SECONDS
    assert soak.counts["bad"] > SECONDS
    assert soak.counts["left"] > SECONDS
    assert server.http.post(COMPLETIONS, json={"model": "fake", "prompt": "x"}).status_code == 200
    assert server.metric("kv_cache_usage_perc") == 0
    assert server.metric("num_requests_running") == 0
    assert "Traceback" not in server.output()
