"""Streams as the unmodified `openai` package reads them, its helpers and asyncio included."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.support.http_server import ServerProcess, children, run_server, wait_until
from tests.support.openai_client import (
    MODEL,
    async_client_of,
    client_of,
    expected_answer,
    expected_ids,
    expected_text,
)

QUESTION: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with run_server(stand_in={"step_seconds": 0.002}) as server:
        yield server


def is_idle(server: ServerProcess) -> bool:
    return bool(server.http.get("/load").json() == {"server_load": 0})


def test_the_chat_helper_gathers_the_answer(client: openai.OpenAI) -> None:
    text = expected_answer(QUESTION, 60)
    stop = text[40:42]  # the helper takes an answer that was cut for an error
    with client.chat.completions.stream(
        model=MODEL,
        messages=QUESTION,
        max_tokens=60,
        stop=stop,
        logprobs=True,
        stream_options={"include_usage": True},
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert choice.message.content == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert final.usage is not None
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or []) == final.usage.completion_tokens
    assert {"chunk", "content.delta", "content.done"} <= {event.type for event in events}


def test_every_chunk_is_of_one_answer(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, n=3, max_tokens=10, stream=True
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    for index in range(3):
        choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"]
        assert choices[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
        assert choices[-1].finish_reason == "length"
        text = "".join(choice.delta.content or "" for choice in choices)
        assert text == expected_answer(QUESTION, 10)


def test_usage_comes_last_and_once_unless_continuous(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "prompt": "Hello", "max_tokens": 10, "stream": True}
    plain = list(client.completions.create(**fields))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    *chunks, last = client.completions.create(**fields, stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 10
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    counted = list(client.completions.create(**fields, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in counted if chunk.usage]
    assert len(counts) == len(counted)
    assert counts == sorted(counts)
    assert counts[-1] == 10


def test_token_ids_stream_with_their_text(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="x", max_tokens=40, stream=True, extra_body={"return_token_ids": True}
    )
    ids: list[int] = []
    for chunk in stream:
        ids += (chunk.choices[0].model_extra or {})["token_ids"]
    assert ids == expected_ids("x", 40)


def test_a_stop_text_never_shows_whatever_the_pieces(client: openai.OpenAI) -> None:
    text = expected_text("Stop", 60)
    stop = text[30:34]
    stream = client.completions.create(
        model=MODEL, prompt="Stop", max_tokens=60, stop=[stop, "never\x00"], stream=True
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices[0].model_extra or {})["stop_reason"] == stop


def test_the_wire_is_server_sent_events_to_the_end(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=QUESTION, max_tokens=5, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        assert json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_a_closed_stream_ends_the_request(client: openai.OpenAI, server: ServerProcess) -> None:
    stream = client.completions.create(model=MODEL, prompt="x", max_tokens=8000, stream=True)
    next(iter(stream))
    assert not is_idle(server)
    stream.close()
    wait_until(lambda: is_idle(server), timeout=5)


def test_a_cancelled_task_ends_the_request(server: ServerProcess) -> None:
    async def main() -> None:
        async with async_client_of(server) as client:
            whole = asyncio.create_task(
                client.completions.create(model=MODEL, prompt="x", max_tokens=8000)
            )
            while await asyncio.to_thread(is_idle, server):
                await asyncio.sleep(0.01)
            whole.cancel()
            with pytest.raises(asyncio.CancelledError):
                await whole

    asyncio.run(main())
    wait_until(lambda: is_idle(server), timeout=5)


def test_a_deadline_of_the_client_ends_the_request(server: ServerProcess) -> None:
    with client_of(server, timeout=0.3) as hasty:
        begun = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            hasty.completions.create(model=MODEL, prompt="x", max_tokens=8000)
        assert time.monotonic() - begun < 5
    wait_until(lambda: is_idle(server), timeout=5)


def _place_of(token_id: int, ids: list[int]) -> int:
    return ids.index(token_id) if token_id in ids else -1


def test_an_error_within_a_stream_is_raised_behind_its_text() -> None:
    """The row fails at the first token 77 that the stand-in reads back."""
    places = {str(i): _place_of(77, expected_ids(str(i), 40)) for i in range(100)}
    prompt, before = next((p, place) for p, place in places.items() if place > 5)
    slow = {"nan_on": 77, "step_seconds": 0.02}
    with run_server(stand_in=slow) as server, client_of(server) as client:
        stream = client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=100,
            stream=True,
            extra_body={"return_token_ids": True},
        )
        chunks: list[Completion] = []
        with pytest.raises(openai.APIError) as failed:
            chunks.extend(stream)
        ids = [i for chunk in chunks for i in (chunk.choices[0].model_extra or {})["token_ids"]]
        assert ids == expected_ids(prompt, 40)[: before + 1]
        assert failed.value.code == "generation_failed"
        with pytest.raises(openai.InternalServerError) as whole:
            client.completions.create(model=MODEL, prompt=prompt, max_tokens=100)
        assert whole.value.code == "generation_failed"


def test_the_death_of_the_engine_ends_a_stream_with_an_error() -> None:
    with run_server(stand_in={"step_seconds": 0.01}) as server, client_of(server) as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=8000, stream=True)
        next(iter(stream))
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        with pytest.raises(openai.APIError) as failed:
            list(stream)
        assert failed.value.code == "engine_dead"
