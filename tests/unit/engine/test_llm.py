"""Offline generation over the stand-in, in this process."""

import logging

import pytest

from nsa_serve import LLM, SamplingParams
from nsa_serve.engine.stand_in import (
    OPTIONS_VARIABLE,
    expected_continuation,
    expected_logprob,
    splitmix64,
)
from nsa_serve.errors import ConfigError, ContextLengthError

POISON = 256


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setenv(OPTIONS_VARIABLE, f'{{"nan_on": {POISON}}}')
    return LLM(runner="stand-in", max_model_len=128, max_num_seqs=8)


def test_outputs_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [f"prompt {i}" * (i % 5 + 1) for i in range(40)]
    params = [SamplingParams(max_tokens=40 - i) for i in range(40)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        expected = expected_continuation(prompt.encode(), 40 - i)
        assert output.outputs[0].token_ids == expected
        assert output.outputs[0].text == llm.tokenizer.decode(expected)
        assert output.finished


def test_one_prompt_needs_no_list(llm: LLM) -> None:
    (text,) = llm.generate("abc")
    (token_ids,) = llm.generate([97, 98, 99])
    mixed: list[str | list[int]] = ["abc", [97, 98, 99]]
    both = llm.generate(mixed)
    assert text.outputs == token_ids.outputs == both[0].outputs == both[1].outputs


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_a_stop_string_ends_one_prompt_of_many(llm: LLM) -> None:
    (free,) = llm.generate("stop", SamplingParams(max_tokens=60))
    stop = free.outputs[0].text[10:13]
    params = SamplingParams(max_tokens=60, stop=(stop,))
    stopped, other = llm.generate(["stop", "other"], [params, SamplingParams(max_tokens=60)])
    text = free.outputs[0].text
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert other.outputs[0].token_ids == expected_continuation(b"other", 60)


def test_chat_renders_a_conversation(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    params = SamplingParams(max_tokens=4)
    (one,) = llm.chat(conversation, params)
    (again,) = llm.chat([conversation], params)
    assert one.prompt_token_ids == llm.tokenizer.encode_chat(conversation)
    assert one.outputs == again.outputs


def test_score_gives_every_token_after_the_first(llm: LLM) -> None:
    token_ids = [5, 6, 7, 8]
    entry, expected = splitmix64(5), []
    for token_id in token_ids[1:]:
        expected.append(expected_logprob(entry, token_id))
        entry = splitmix64(entry ^ token_id)
    assert llm.score(token_ids) == expected


def test_a_prompt_too_long_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(ContextLengthError):
        llm.generate(["fine", "x" * 200])


def test_a_prompt_that_fails_does_not_take_others_with_it(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        outputs = llm.generate([[1], [POISON], [2]], SamplingParams(max_tokens=3))
    assert [o.outputs[0].finish_reason for o in outputs] == ["length", "error", "length"]
    assert "failed" in caplog.text


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"max_num_seqs": "many"}, {"no": 1}])
def test_a_setting_that_is_wrong_is_a_config_error(options: dict[str, str | int]) -> None:
    with pytest.raises(ConfigError):
        LLM(runner="stand-in", **options)  # type: ignore[arg-type]
