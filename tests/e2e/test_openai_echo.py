"""`echo`, with the unmodified `openai` package: prompts before their continuations."""

from typing import Any

import openai
import pytest

from nsa_serve.text.tokenizer import Tokenizer
from tests.support.openai_client import MODEL, expected_text

TEXT = "A prompt, é"
IDS = Tokenizer.byte_level().encode(TEXT)


def test_the_prompt_stands_before_every_continuation(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=[TEXT, "x"], echo=True, max_tokens=9, n=2
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [p + expected_text(p, 9) for p in (TEXT, TEXT, "x", "x")]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 36


def test_token_ids_are_echoed_as_their_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=IDS, echo=True, max_tokens=9)
    assert answer.choices[0].text == TEXT + expected_text(TEXT, 9)


def test_of_a_truncated_prompt_what_was_read_is_echoed(client: openai.OpenAI) -> None:
    extra = {"truncate_prompt_tokens": 4}
    answer = client.completions.create(
        model=MODEL, prompt=TEXT, echo=True, max_tokens=9, extra_body=extra
    )
    assert answer.choices[0].text == ", é" + expected_text(IDS[-4:], 9)


def test_with_no_tokens_wanted_the_prompt_is_all(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=TEXT, echo=True, max_tokens=0, logprobs=0
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (TEXT, "length")
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens or []) == len(IDS)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(IDS), 0)


def test_log_probabilities_are_those_of_the_prompt_and_of_what_follows(
    client: openai.OpenAI,
) -> None:
    def ask(**fields: Any) -> Any:
        answer = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=5, **fields)
        return answer.choices[0]

    echoed = ask(echo=True, logprobs=2, extra_body={"prompt_logprobs": 0}).logprobs
    plain = ask(logprobs=2, extra_body={"prompt_logprobs": 2})
    first, *places = plain.model_extra["prompt_logprobs"]
    chosen = [place[str(i)] for place, i in zip(places, IDS[1:], strict=True)]
    assert first is None
    assert echoed.token_logprobs[0] is None
    assert echoed.token_logprobs[1 : len(IDS)] == [candidate["logprob"] for candidate in chosen]
    assert echoed.token_logprobs[len(IDS) :] == plain.logprobs.token_logprobs
    assert echoed.top_logprobs[0] is None
    for top, place in zip(echoed.top_logprobs[1 : len(IDS)], places, strict=True):
        by_text = {c["decoded_token"]: c["logprob"] for c in reversed(list(place.values()))}
        assert top == by_text
    assert echoed.top_logprobs[len(IDS) :] == plain.logprobs.top_logprobs
    lengths = [len(text) for text in echoed.tokens]
    assert echoed.text_offset == [sum(lengths[:i]) for i in range(len(lengths))]


def test_each_field_tells_as_many_candidates_as_it_asks_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=TEXT, echo=True, logprobs=3, extra_body={"prompt_logprobs": 1}
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert max(len(top) for top in (choice.logprobs.top_logprobs or [])[1:]) >= 3
    assert all(len(place) <= 2 for place in (choice.model_extra or {})["prompt_logprobs"][1:])


@pytest.mark.parametrize("max_tokens", [0, 1, 30])
def test_a_stream_begins_with_the_prompt(client: openai.OpenAI, max_tokens: int) -> None:
    texts = dict.fromkeys(range(4), "")
    ends = 0
    for chunk in client.completions.create(
        model=MODEL, prompt=[TEXT, "x"], echo=True, max_tokens=max_tokens, n=2, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends += choice.finish_reason == "length"
    continued = [p + (expected_text(p, max_tokens) if max_tokens else "") for p in (TEXT, "x")]
    assert texts == {i: continued[i // 2] for i in range(4)}
    assert ends == 4


@pytest.mark.parametrize("asked", [{"echo": True, "logprobs": 20}, {"prompt_logprobs": 20}])
def test_what_would_make_an_answer_of_gigabytes_is_refused(
    client: openai.OpenAI, asked: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": 1, "extra_body": asked}
    client.completions.create(prompt="x" * 500, n=8, **fields)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(prompt=["x" * 500] * 4, n=128, **fields)
    assert refused.value.param == ("echo" if "echo" in asked else "prompt_logprobs")
