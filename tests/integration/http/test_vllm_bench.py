"""The requests of `vllm bench serve`, and how it reads answers, over real sockets.

Written after its documented behaviour: it asks for the first model, compares tokenizers over
/tokenize and /detokenize, sends one request to see whether the server is there and then all of
them, by aiohttp. It takes every event with choices for a token's arrival and the event without
for the usage; an answer without any choice is a failed request.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.support.http_server import ServerProcess, run_server
from tests.support.openai_client import expected_answer, expected_text

Body = dict[str, Any]
NUM_TOKENS = 24
SAMPLING: Body = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}


@dataclass
class Reading:
    """What the tool would note of one request."""

    status: int
    text: str = ""
    num_chunks: int = 0
    usage: Body = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with run_server(stand_in={"step_seconds": 0.001}) as server:
        yield server


def completion(prompt: Any, **fields: Any) -> Body:
    """Of the backends openai and vllm."""
    return {
        "model": "stand-in",
        "prompt": prompt,
        "repetition_penalty": 1.0,
        "max_tokens": NUM_TOKENS,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


def chat(prompt: str, **fields: Any) -> Body:
    """Of the backend openai-chat."""
    return {
        "model": "stand-in",
        "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
        "max_completion_tokens": NUM_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


async def read(session: aiohttp.ClientSession, url: str, body: Body, number: int = 0) -> Reading:
    headers = {"x-request-id": f"bench-0123abcd-{number}"}
    async with session.post(url, json=body, headers=headers) as answer:
        reading = Reading(answer.status, ids={answer.headers["x-request-id"]})
        received = b""
        async for piece in answer.content.iter_any():
            received += piece
    *lines, end = received.decode().strip().split("\n\n")
    assert end == "data: [DONE]"
    for line in lines:
        event = json.loads(line.removeprefix("data: "))
        if event["choices"]:
            (choice,) = event["choices"]
            reading.num_chunks += 1
            reading.text += choice["text"] if "text" in choice else choice["delta"]["content"]
        else:
            reading.usage = event["usage"]
    return reading


def run(work: Callable[[aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, force_close=False)
        async with aiohttp.ClientSession(connector=connector, trust_env=True) as session:
            return await work(session)

    return asyncio.run(main())


@pytest.mark.parametrize("fields", [{}, {"ignore_eos": True}, {"ignore_eos": True, **SAMPLING}])
def test_completions_read_as_it_reads_them(server: ServerProcess, fields: Body) -> None:
    url = f"{server.url}/v1/completions"
    reading: Reading = run(lambda session: read(session, url, completion("Hello", **fields)))
    assert reading.status == 200
    assert reading.text == expected_text("Hello", NUM_TOKENS)
    assert 0 < reading.num_chunks <= NUM_TOKENS
    assert reading.usage["completion_tokens"] == NUM_TOKENS
    assert reading.usage["prompt_tokens"] == 5
    assert reading.ids == {"bench-0123abcd-0"}


def test_logprobs_and_token_prompts_too(server: ServerProcess) -> None:
    url = f"{server.url}/v1/completions"
    body = completion(list(b"Hello"), logprobs=1, ignore_eos=True)
    reading: Reading = run(lambda session: read(session, url, body))
    assert reading.text == expected_text("Hello", NUM_TOKENS)
    assert reading.usage["completion_tokens"] == NUM_TOKENS


@pytest.mark.parametrize("fields", [{}, {"ignore_eos": True, **SAMPLING}])
def test_chats_read_as_it_reads_them(server: ServerProcess, fields: Body) -> None:
    url = f"{server.url}/v1/chat/completions"
    reading: Reading = run(lambda session: read(session, url, chat("Hello", **fields)))
    assert reading.text == expected_answer([{"role": "user", "content": "Hello"}], NUM_TOKENS)
    assert 0 < reading.num_chunks <= NUM_TOKENS + 1  # the first has the role
    assert reading.usage["completion_tokens"] == NUM_TOKENS


def test_all_at_once_without_a_failed_request(server: ServerProcess) -> None:
    """A request rate of inf: by default it sends everything it has."""

    async def main(session: aiohttp.ClientSession) -> list[Reading]:
        url = f"{server.url}/v1/completions"
        bodies = [completion(f"Prompt {i}", ignore_eos=True) for i in range(100)]
        return await asyncio.gather(*(read(session, url, b, i) for i, b in enumerate(bodies)))

    readings: list[Reading] = run(main)
    assert [r.text for r in readings] == [expected_text(f"Prompt {i}", 24) for i in range(100)]
    assert all(r.usage["completion_tokens"] == NUM_TOKENS for r in readings)


def test_what_it_asks_before_the_load(server: ServerProcess) -> None:
    async def main(session: aiohttp.ClientSession) -> None:
        async with session.get(f"{server.url}/v1/models") as answer:
            (model,) = (await answer.json())["data"]
            assert (model["id"], type(model["root"])) == ("stand-in", str)
        body: Body = {"model": "stand-in", "prompt": "Hello", "add_special_tokens": False}
        async with session.post(f"{server.url}/tokenize", json=body) as answer:
            tokens = (await answer.json())["tokens"]
            assert tokens == list(b"Hello")
        body = {"model": "stand-in", "tokens": tokens[:4]}
        async with session.post(f"{server.url}/detokenize", json=body) as answer:
            assert (await answer.json())["prompt"] == "Hell"
        async with session.get(f"{server.url}/metrics") as answer:
            assert answer.status == 200

    run(main)
