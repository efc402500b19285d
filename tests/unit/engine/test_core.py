"""The core loop over the stand-in: the right tokens, however they were scheduled."""

import random

import pytest

from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.engine.stand_in import StandInOptions, expected_continuation
from nsa_serve.params import SamplingParams
from tests.support.engine import (
    add_message,
    random_prompt,
    run_to_end,
    stand_in_config,
    stand_in_core,
    tokens_of,
)


def test_a_sequence_alone_gives_the_expected_tokens() -> None:
    core = stand_in_core()
    core.add(add_message(0, b"alone"))
    outputs = run_to_end(core)[0]
    assert tokens_of(outputs) == expected_continuation(b"alone", 8)
    assert [output.finish_reason for output in outputs] == [None] * 7 + ["length"]


@pytest.mark.parametrize("max_num_batched_tokens", [1, 3, 64, 1024])
def test_a_batch_gives_each_its_own_tokens_for_any_chunking(max_num_batched_tokens: int) -> None:
    rng = random.Random(max_num_batched_tokens)
    prompts = {i: random_prompt(rng) for i in range(24)}
    core = stand_in_core(stand_in_config(max_num_batched_tokens=max_num_batched_tokens))
    for sequence_id, prompt in prompts.items():
        core.add(add_message(sequence_id, prompt))
    outputs = run_to_end(core)
    for sequence_id, prompt in prompts.items():
        assert tokens_of(outputs[sequence_id]) == expected_continuation(prompt, 8)


def test_preempted_sequences_give_the_same_tokens() -> None:
    rng = random.Random(1)
    prompts = {i: random_prompt(rng, 20, 40) for i in range(32)}
    core = stand_in_core(stand_in_config(num_pages=64))
    params = SamplingParams(max_tokens=40, temperature=0.0)
    for sequence_id, prompt in prompts.items():
        core.add(add_message(sequence_id, prompt, params))
    outputs = run_to_end(core)
    for sequence_id, prompt in prompts.items():
        assert tokens_of(outputs[sequence_id]) == expected_continuation(prompt, 40)
    assert core.step().stats.num_preemptions > 0


def test_a_prefix_hit_is_reported_and_changes_no_token() -> None:
    core = stand_in_core()
    prefix = bytes(range(40))
    core.add(add_message(0, prefix))
    run_to_end(core)
    core.add(add_message(1, prefix + b"tail"))
    first, *rest = run_to_end(core)[1]
    assert first.num_cached_tokens == 40
    assert tokens_of([first, *rest]) == expected_continuation(prefix + b"tail", 8)


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    core = stand_in_core(stand_in_config(max_num_batched_tokens=7))
    prompt = bytes(range(30))
    core.add(add_message(0, prompt))
    run_to_end(core)
    core.add(add_message(1, prompt, SamplingParams(max_tokens=1, prompt_logprobs=2)))
    pieces = [output.prompt_logprobs or [] for output in run_to_end(core)[1]]
    places = [place for piece in pieces for place in piece]
    assert [place.chosen.token_id for place in places] == list(prompt[1:])
    assert all(len(place.top) == 2 for place in places)


def test_log_probabilities_come_with_their_tokens() -> None:
    core = stand_in_core()
    core.add(add_message(0, b"x", SamplingParams(max_tokens=5, logprobs=3)))
    for output in run_to_end(core)[0]:
        assert output.logprobs is not None
        assert [place.chosen.token_id for place in output.logprobs] == output.new_token_ids


def _run_with_stop(token_id: int, **params: bool | int | tuple[int, ...]) -> list[SequenceOutput]:
    options = StandInOptions(eos_token_ids=(token_id,), samples_eos=True)
    core = stand_in_core(options=options)
    core.add(add_message(0, b"stop", SamplingParams(max_tokens=8, **params)))  # type: ignore[arg-type]
    return run_to_end(core)[0]


def test_end_of_text_stops_and_is_not_named() -> None:
    expected = expected_continuation(b"stop", 8, avoid=())
    outputs = _run_with_stop(expected[3])
    assert tokens_of(outputs) == expected[:4]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == ("stop", None)


def test_end_of_text_is_an_ordinary_token_when_ignored() -> None:
    expected = expected_continuation(b"stop", 8, avoid=())
    outputs = _run_with_stop(expected[3], ignore_eos=True)
    assert tokens_of(outputs) == expected
    assert outputs[-1].finish_reason == "length"


def test_end_of_text_does_not_stop_before_min_tokens() -> None:
    expected = expected_continuation(b"stop", 8, avoid=())
    outputs = _run_with_stop(expected[3], min_tokens=6)
    assert tokens_of(outputs) == expected


def test_a_stop_token_of_the_request_is_named() -> None:
    expected = expected_continuation(b"stop", 8, avoid=())
    outputs = _run_with_stop(expected[5], stop_token_ids=(expected[2],))
    assert tokens_of(outputs) == expected[:3]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == ("stop", expected[2])


def test_without_max_tokens_the_context_is_filled() -> None:
    core = stand_in_core(stand_in_config(max_model_len=50))
    core.add(add_message(0, b"0123456789", SamplingParams(max_tokens=None)))
    assert tokens_of(run_to_end(core)[0]) == expected_continuation(b"0123456789", 40)


def test_a_prompt_that_never_fits_is_refused_and_harms_nobody() -> None:
    core = stand_in_core()
    core.add(add_message(0, b"good"))
    core.add(add_message(1, bytes(300)))
    outputs = run_to_end(core)
    assert outputs[1][0].finish_reason == "error"
    assert outputs[1][0].error
    assert tokens_of(outputs[0]) == expected_continuation(b"good", 8)


def test_figures_count_tokens_steps_and_come_to_rest() -> None:
    core = stand_in_core()
    for sequence_id in range(3):
        core.add(add_message(sequence_id, bytes([sequence_id]) * 5))
    run_to_end(core)
    stats = core.step().stats
    assert (stats.prompt_tokens, stats.generation_tokens) == (15, 24)
    assert stats.num_steps == 8
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_times_come_in_order_with_the_first_and_the_last_output() -> None:
    core = stand_in_core()
    core.add(add_message(0, b"times"))
    first, *middle, last = run_to_end(core)[0]
    assert first.times is not None
    assert last.times is not None
    assert all(output.times is None for output in middle)
    assert 0 < last.times.first_scheduled <= last.times.first_token <= last.times.last_token
    assert first.times.first_token == last.times.first_token


def test_prompt_logprobs_are_reported_once_though_a_preempted_prompt_is_computed_again() -> None:
    core = stand_in_core(stand_in_config(max_num_batched_tokens=8))
    prompt = list(range(40))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    core.add(add_message(0, prompt, params))
    outputs = [output for _ in range(3) for output in core.step().outputs]
    core._scheduler.preempt(0)
    outputs += run_to_end(core)[0]
    places = [place for output in outputs for place in output.prompt_logprobs or []]
    assert [place.chosen.token_id for place in places] == prompt[1:]


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_parameter_that_names_no_token_is_refused_alone(token_id: int) -> None:
    core = stand_in_core()
    core.add(add_message(0, [1, 2, 3], SamplingParams(max_tokens=2, logit_bias={token_id: 1.0})))
    core.add(add_message(1, [1, 2, 3]))
    outputs = run_to_end(core)
    assert "logit_bias" in (outputs[0][-1].error or "")
    assert len(tokens_of(outputs[1])) == 8
