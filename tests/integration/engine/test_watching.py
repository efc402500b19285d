"""Looks into an engine process: at all that is in flight, and at one request's selection."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from nsa_serve.engine.client import AsyncEngine
from nsa_serve.errors import EngineDeadError
from nsa_serve.outputs import RequestOutput
from nsa_serve.params import SamplingParams
from tests.support.async_engine import running_engine, until
from tests.support.model_folder import engine_config, write_sharp_folder

PROMPT = list(range(50))


def long_stream(engine: AsyncEngine, num_tokens: int = 4000) -> AsyncGenerator[RequestOutput, None]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return engine.stream(PROMPT, params, request_id="long")


def test_progress_of_what_is_in_flight() -> None:
    async def look(engine: AsyncEngine) -> None:
        assert await engine.progress() == []
        async with aclosing(long_stream(engine)) as stream:
            async for _ in stream:
                break
            (found,), (same,) = await asyncio.gather(engine.progress(), engine.progress())
            assert found == same
            assert (found.request_id, found.index) == ("long", 0)
            assert found.progress.stage == "decode"
            assert found.progress.num_prompt_tokens == 50
            assert found.progress.num_output_tokens >= 1
            assert found.progress.arrived > 0
        assert await engine.progress() == []

    with running_engine(step_seconds=0.002) as handle:
        handle.run(look(handle.engine))


def test_a_long_step_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsa_serve.engine.watching._SECONDS_FOR_PROGRESS", 0.05)

    async def look(engine: AsyncEngine) -> None:
        async with aclosing(long_stream(engine)) as stream:
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.1)  # the first step has begun, and takes a second
            with pytest.raises(TimeoutError):
                await engine.progress()
            with pytest.raises(TimeoutError):
                await engine.selection("long", seconds=0.05)
            await first
            monkeypatch.setattr("nsa_serve.engine.watching._SECONDS_FOR_PROGRESS", 10.0)
            (late,) = await engine.progress()
            assert late.request_id == "long"

    with running_engine(step_seconds=1.0) as handle:
        handle.run(look(handle.engine))


def test_looks_go_on_with_an_engine_that_was_started_anew() -> None:
    async def look(engine: AsyncEngine) -> None:
        async with aclosing(long_stream(engine)) as stream:
            await anext(stream)
            asked = asyncio.ensure_future(engine.progress())
            await asyncio.sleep(0)
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(EngineDeadError):
                async for _ in stream:
                    pass
            await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: engine.alive, 30.0)
        async with aclosing(long_stream(engine)) as stream:
            await anext(stream)
            assert len(await engine.progress()) == 1

    with running_engine(step_seconds=0.002) as handle:
        handle.run(look(handle.engine))


def test_a_runner_without_layers_says_so() -> None:
    async def look(engine: AsyncEngine) -> None:
        assert await engine.selection("nobody", seconds=1) is None
        async with aclosing(long_stream(engine)) as stream:
            await anext(stream)
            found = await engine.selection("long", seconds=5)
            assert found is not None
            assert found.unavailable == "this runner has no layers"
        assert await engine.selection("long", seconds=1) is None

    with running_engine(step_seconds=0.002) as handle:
        handle.run(look(handle.engine))


def test_selection_of_a_model(tmp_path: Path) -> None:
    folder, _ = write_sharp_folder(tmp_path)

    async def look(engine: AsyncEngine) -> None:
        async with aclosing(long_stream(engine, 150)) as stream:
            await anext(stream)
            both = await asyncio.gather(*(engine.selection("long", seconds=20) for _ in range(2)))
            assert both[0] == both[1]
            assert both[0] is not None
            assert both[0].unavailable is None
            assert both[0].position >= 50
            assert len(both[0].layers) == 2
            # Looks until the end: the last finds that the request is gone, and waits for nothing.
            while await engine.selection("long", seconds=20) is not None:
                pass

    with running_engine(engine_config(folder)) as handle:
        handle.run(look(handle.engine))
