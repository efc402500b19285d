"""The built-in model behind a real server process, asked by the unmodified `openai` package."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from tests.support.http_server import run_server

QUESTION = "What is the capital of France?"
SUBJECTS = ("rivers", "bread", "the moon", "chess", "iron", "whales", "sleep", "glass")


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    engine = {"runner": "model", "cpu_cache_gib": 1.0}
    with run_server(engine=engine) as server:
        yield OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def model_of(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_it_knows_the_capital_of_france(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=model_of(client),
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_a_streamed_answer_is_the_same_in_pieces(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model=model_of(client),
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
    )
    stream = client.chat.completions.create(
        model=model_of(client),
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 2
    assert "".join(pieces) == whole.choices[0].message.content


def prompt(number: int) -> str:
    """Of 20 to 1,300 tokens, so that some select blocks and most do not."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    filler = " ".join(f"Fact {i} about {subject} is number {i * number}." for i in range(number**2))
    return f"{filler[:4500]} Write a sentence about {subject}."


def ask(client: OpenAI, model: str, number: int, salt: str) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt(number)}],
        temperature=0,
        max_tokens=24,
        extra_body={"cache_salt": salt},
    )
    return answer.choices[0].message.content or ""


def test_sixteen_chats_at_once_answer_what_each_answers_alone(client: OpenAI) -> None:
    model = model_of(client)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda i: ask(client, model, i, "together"), range(16)))
    alone = [ask(client, model, i, "alone") for i in range(16)]
    assert together == alone
    assert len(set(alone)) == 16
