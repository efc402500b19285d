"""The client over a real engine process: what comes, what is refused, what is freed."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import pytest

from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine, ChatPrompt
from nsa_serve.engine.stand_in import expected_continuation
from nsa_serve.errors import ContextLengthError, GenerationError, QueueFullError, RequestError
from nsa_serve.outputs import RequestOutput
from nsa_serve.params import SamplingParams
from tests.support.async_engine import EngineHandle, running_engine, until

POISON = 256  # end-of-text, which the stand-in never says
MAX_MODEL_LEN = 512
LONG = SamplingParams(max_tokens=400)


@pytest.fixture(scope="module")
def handle() -> Iterator[EngineHandle]:
    config = EngineConfig(
        runner="stand-in", max_model_len=MAX_MODEL_LEN, max_num_seqs=4, max_num_queued_reqs=4
    )
    with running_engine(config, step_seconds=0.001, raises_on=POISON) as running:
        yield running


async def _collect(stream: AsyncGenerator[RequestOutput, None]) -> list[RequestOutput]:
    async with aclosing(stream):
        return [output async for output in stream]


def test_a_stream_brings_the_expected_tokens_and_their_text(handle: EngineHandle) -> None:
    params = SamplingParams(max_tokens=40)
    items = handle.run(_collect(handle.engine.stream("a stream", params, request_id="r")))
    token_ids = [i for item in items for output in item.outputs for i in output.token_ids]
    text = "".join(output.text for item in items for output in item.outputs)
    assert token_ids == expected_continuation(b"a stream", 40)
    assert text == handle.engine.tokenizer.decode(token_ids)
    assert all(item.prompt_token_ids == list(b"a stream") for item in items)
    assert all(item.outputs for item in items)
    assert len(items) > 1
    assert items[-1].outputs[0].finish_reason == "length"


def test_generate_returns_all_that_a_stream_brings(handle: EngineHandle) -> None:
    params = SamplingParams(max_tokens=30, n=3, logprobs=2, prompt_logprobs=1)
    whole = handle.run(handle.engine.generate("whole", params, request_id="g"))
    items = handle.run(_collect(handle.engine.stream("whole", params, request_id="s")))
    assert [output.index for output in whole.outputs] == [0, 1, 2]
    for output in whole.outputs:
        parts = [o for item in items for o in item.outputs if o.index == output.index]
        assert output.text == "".join(part.text for part in parts)
        assert output.logprobs == [place for part in parts for place in part.logprobs or []]
        assert output.cumulative_logprob == parts[-1].cumulative_logprob
    assert whole.prompt_logprobs is not None
    assert len(whole.prompt_logprobs) == len(b"whole")
    assert [i.prompt_logprobs for i in items if i.prompt_logprobs] == [whole.prompt_logprobs]


def test_a_conversation_is_rendered_and_continued(handle: EngineHandle) -> None:
    prompt = ChatPrompt([{"role": "user", "content": "hi"}])
    output = handle.run(handle.engine.generate(prompt, LONG, request_id="c"))
    expected = handle.engine.tokenizer.encode_chat(prompt.messages)
    assert output.prompt_token_ids == expected
    assert output.outputs[0].token_ids[:8] == expected_continuation(expected, 8)


def test_a_stop_string_ends_the_request_in_the_core_too(handle: EngineHandle) -> None:
    async def scene() -> RequestOutput:
        text = (await handle.engine.generate("stop", LONG, request_id="a")).outputs[0].text
        params = SamplingParams(max_tokens=400, stop=(text[20:23],))
        output = await handle.engine.generate("stop", params, request_id="b")
        assert output.outputs[0].text == text[: text.index(text[20:23])]
        assert output.outputs[0].stop_reason == text[20:23]
        await until(lambda: handle.engine.stats.num_running == 0, seconds=0.2)
        return output

    assert len(handle.run(scene()).outputs[0].token_ids) < 100


def test_leaving_a_stream_frees_its_place_and_its_pages(handle: EngineHandle) -> None:
    async def scene() -> None:
        async with aclosing(handle.engine.stream("leave", LONG, request_id="l")) as stream:
            await anext(stream)
            assert handle.engine.num_unfinished == 1
        assert handle.engine.num_unfinished == 0
        await until(lambda: handle.engine.stats.kv_cache_usage == 0.0, seconds=0.2)

    handle.run(scene())


def test_cancelling_generate_frees_its_place_and_its_pages(handle: EngineHandle) -> None:
    async def scene() -> None:
        call = asyncio.create_task(handle.engine.generate("gone", LONG, request_id="x"))
        await until(lambda: handle.engine.stats.num_running == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert handle.engine.num_unfinished == 0
        await until(lambda: handle.engine.stats.num_running == 0, seconds=0.2)

    handle.run(scene())


def test_abort_ends_a_stream_with_what_there_is(handle: EngineHandle) -> None:
    async def scene() -> None:
        params = SamplingParams(max_tokens=400, n=2)
        async with aclosing(handle.engine.stream("abort", params, request_id="a")) as stream:
            await anext(stream)
            await handle.engine.abort("a")
            *_, last = [output async for output in stream]
        assert [o.finish_reason for o in last.outputs] == ["abort", "abort"]
        await handle.engine.abort("unknown")
        await until(lambda: handle.engine.stats.num_running == 0, seconds=0.2)

    handle.run(scene())


def test_the_queue_is_bounded_and_what_is_refused_is_not_tokenised(
    handle: EngineHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = handle.engine.tokenizer.encode

    def spy(text: str) -> list[int]:
        encoded.append(text)
        return encode(text)

    async def scene() -> None:
        calls = [
            handle.engine.generate(f"burst {i}", SamplingParams(max_tokens=20), request_id=str(i))
            for i in range(20)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        full = [result for result in results if isinstance(result, QueueFullError)]
        assert len(full) == 12
        assert len(encoded) == 8
        assert handle.engine.num_unfinished == 0

    monkeypatch.setattr(handle.engine.tokenizer, "encode", spy)
    handle.run(scene())


@pytest.mark.slow
def test_of_a_thousand_at_once_those_are_tokenised_that_the_queue_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = EngineConfig(runner="stand-in", max_num_seqs=16, max_num_queued_reqs=64)
    encoded: list[str] = []

    async def scene(engine: AsyncEngine) -> list[RequestOutput | BaseException]:
        params = SamplingParams(max_tokens=10)
        calls = [engine.generate(f"burst {i}", params, request_id=str(i)) for i in range(1000)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with running_engine(config, step_seconds=0.02) as handle:
        encode = handle.engine.tokenizer.encode

        def spy(text: str) -> list[int]:
            encoded.append(text)
            return encode(text)

        monkeypatch.setattr(handle.engine.tokenizer, "encode", spy)
        results = handle.run(scene(handle.engine))
    full = [result for result in results if isinstance(result, QueueFullError)]
    assert (len(full), len(encoded)) == (920, 80)
    waits = [error.retry_after for error in full]
    assert waits == sorted(waits)
    assert len(set(waits)) > 100


def test_every_continuation_takes_a_place(handle: EngineHandle) -> None:
    async def scene() -> None:
        params = SamplingParams(max_tokens=20, n=5)
        first = handle.engine.generate("five", params, request_id="1")
        second = handle.engine.generate("five", params, request_id="2")
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[0], RequestOutput)
        assert isinstance(results[1], QueueFullError)

    handle.run(scene())


def test_an_id_in_flight_is_refused(handle: EngineHandle) -> None:
    async def scene() -> None:
        async with aclosing(handle.engine.stream("one", LONG, request_id="same")) as stream:
            await anext(stream)
            with pytest.raises(RequestError, match="in flight"):
                await handle.engine.generate("two", LONG, request_id="same")
            assert handle.engine.num_unfinished == 1

    handle.run(scene())


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("x" * 600, "prompt"),
        ([1] * 600, "prompt"),
        (ChatPrompt([{"role": "user", "content": "x" * 600}]), "messages"),
    ],
)
def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    handle: EngineHandle, prompt: str | list[int] | ChatPrompt, param: str
) -> None:
    with pytest.raises(ContextLengthError, match=r"maximum context length is 512 .* has 6\d\d"):
        handle.run(handle.engine.generate(prompt, LONG, request_id="long"))
    with pytest.raises(ContextLengthError) as caught:
        handle.run(handle.engine.generate(prompt, LONG, request_id="long"))
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", ["", [], [-1], [259]])
def test_a_prompt_that_is_none_is_refused(handle: EngineHandle, prompt: str | list[int]) -> None:
    with pytest.raises(RequestError):
        handle.run(handle.engine.generate(prompt, LONG, request_id="bad"))
    assert handle.engine.num_unfinished == 0


@pytest.mark.parametrize("max_tokens", [None, 10**6])
def test_max_tokens_is_cut_to_what_the_context_holds(
    handle: EngineHandle, max_tokens: int | None
) -> None:
    params = SamplingParams(max_tokens=max_tokens)
    output = handle.run(handle.engine.generate([7] * 500, params, request_id="m"))
    assert len(output.outputs[0].token_ids) == MAX_MODEL_LEN - 500


def test_a_request_that_the_engine_cannot_compute_fails_alone(handle: EngineHandle) -> None:
    async def scene() -> None:
        good = handle.engine.generate("good", SamplingParams(max_tokens=50), request_id="good")
        bad = handle.engine.generate([1, POISON, 2], LONG, request_id="bad")
        output, error = await asyncio.gather(good, bad, return_exceptions=True)
        assert isinstance(error, GenerationError)
        assert isinstance(output, RequestOutput)
        assert output.outputs[0].token_ids == expected_continuation(b"good", 50)
        assert handle.engine.num_unfinished == 0

    handle.run(scene())


def test_callbacks_see_every_step(handle: EngineHandle) -> None:
    counts: list[int] = []

    async def scene() -> None:
        handle.engine.on_step.append(lambda step: counts.append(len(step.outputs)))
        await handle.engine.generate("steps", SamplingParams(max_tokens=12), request_id="s")
        handle.engine.on_step.clear()

    before = handle.engine.last_step_time
    handle.run(scene())
    assert sum(counts) == 12
    assert handle.engine.last_step_time > before
