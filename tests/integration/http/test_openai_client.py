"""The unmodified openai package against a real server over the stand-in runner."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from nsa_serve.engine.stand_in import expected_continuation
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.http_server import ServerProcess, run_server

KEY = "a-key"
MODEL = "stand-in"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with run_server(settings={"api_keys": [KEY]}) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def expected_text(prompt: str, num_tokens: int) -> str:
    tokenizer = Tokenizer.byte_level()
    return tokenizer.decode(expected_continuation(tokenizer.encode(prompt), num_tokens))


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_completion_is_the_right_text(client: openai.OpenAI) -> None:
    prompts = ["One", "Another prompt"]
    answer = client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=40)
    texts = [choice.text for choice in answer.choices]
    assert texts == [expected_text(prompt, 40) for prompt in prompts for _ in range(2)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 160


def test_streamed_completion_is_the_same_text(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL,
        prompt=["One", "Two"],
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [expected_text("One", 40), expected_text("Two", 40)]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (6, 80)


def test_chat_streamed_and_not(client: openai.OpenAI) -> None:
    messages = user("Hello <|im_start|>")
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=30)
    stream = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=30, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 30


def test_stop_string_ends_and_is_told(client: openai.OpenAI) -> None:
    text = expected_text("Stop here", 60)
    stop = text[20:22]
    answer = client.completions.create(model=MODEL, prompt="Stop here", max_tokens=60, stop=stop)
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(stop)]
    assert choice.model_extra == {"stop_reason": stop}


def test_logprobs_are_parsed(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=MODEL, messages=user("Hello"), max_tokens=4, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert [len(place.top_logprobs) for place in content] == [3] * 4
    legacy = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, logprobs=3)
    logprobs = legacy.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 4


def test_prompt_logprobs_come_with_the_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    assert answer.choices[0].model_extra is not None
    places = answer.choices[0].model_extra["prompt_logprobs"]
    assert places[0] is None
    assert all(str(byte) in place for byte, place in zip(b"ello", places[1:], strict=True))


def test_prefix_cache_is_shared_within_a_salt_only(client: openai.OpenAI) -> None:
    def cached_tokens(salt: str) -> int:
        answer = client.completions.create(
            model=MODEL, prompt="x" * 200, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert [cached_tokens(salt) for salt in ("a", "a", "b")] == [0, 192, 0]


def test_errors_have_their_classes(client: openai.OpenAI, server: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="x" * 9000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_many_streams_at_once_are_all_right(server: ServerProcess) -> None:
    async def one(client: openai.AsyncOpenAI, i: int) -> None:
        prompt = f"Stream number {i}"
        stream = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=20, stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
        assert text == expected_text(prompt, 20)

    async def main() -> None:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            await asyncio.gather(*(one(client, i) for i in range(64)))

    asyncio.run(main())
