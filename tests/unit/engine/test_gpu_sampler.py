"""Sampling without waiting for the device gives the tokens of the plain sampler."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from nsa_kernels.sample.params import IN_PROMPT
from nsa_serve.engine.gpu_sampler import GpuSampler, uniforms
from nsa_serve.engine.penalty_table import PenaltyTable
from nsa_serve.engine.sampler import SamplingState, sample, sampling_state, uniform
from nsa_serve.params import SamplingParams

VOCAB, EOS = 700, (0, 7)
CPU = torch.device("cpu")


def any_params(rng: random.Random) -> SamplingParams:
    """Any mix of parameters, most of them at their defaults."""
    fields: dict[str, Any] = {"seed": rng.randrange(2**64), "stop_token_ids": (9,)}
    choices: dict[str, Any] = {
        "temperature": lambda: rng.choice([0.0, 0.2, 0.7, 1.5, 1e-40]),
        "top_k": lambda: rng.choice([-1, 1, 3, 40, 699, 5000]),
        "top_p": lambda: rng.choice([1e-6, 0.3, 0.8, 0.95, 0.999]),
        "min_p": lambda: rng.choice([0.01, 0.2, 1.0]),
        "repetition_penalty": lambda: rng.choice([0.7, 1.3]),
        "presence_penalty": lambda: rng.uniform(-2, 2),
        "frequency_penalty": lambda: rng.uniform(-2, 2),
        "logit_bias": lambda: {rng.randrange(VOCAB): rng.uniform(-9, 9) for _ in range(5)},
        "min_tokens": lambda: rng.randrange(12),
    }
    for name, choose in choices.items():
        if rng.random() < 0.3:
            fields[name] = choose()
    return SamplingParams(**fields)


def any_row(rng: random.Random) -> tuple[SamplingState, list[int]]:
    """A sequence that has had some output."""
    tokens = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 30))]
    state = sampling_state(any_params(rng), tokens, EOS)
    return state, [rng.randrange(20) for _ in range(rng.randrange(15))]


@pytest.mark.parametrize("seed", range(12))
def test_any_mix_of_parameters_gives_the_tokens_of_the_plain_sampler(seed: int) -> None:
    """One sampler over many steps of changing batches, whose sequences grow."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    sampler = GpuSampler(VOCAB, CPU, use_kernels=False)
    alive = [any_row(rng) for _ in range(20)]
    for _ in range(8):
        batch = rng.sample(alive, rng.randrange(1, 16))
        states, outputs = [row[0] for row in batch], [row[1] for row in batch]
        logits = torch.randn(len(batch), VOCAB, generator=generator) * rng.choice([0.5, 2.0, 6.0])
        if rng.random() < 0.5:
            logits = logits.bfloat16()  # full of equals
        before = logits.clone()
        tokens = sampler(logits, states, outputs)
        assert tokens.tolist() == sample(logits.float(), states, outputs)
        assert torch.equal(logits, before)
        for output, token in zip(outputs, tokens.tolist(), strict=True):
            output.append(token)
        alive[rng.randrange(20)] = any_row(rng)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")
def test_kernels_give_the_same() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = random.Random(99)
    rows = [any_row(rng) for _ in range(16)]
    states, outputs = [row[0] for row in rows], [row[1] for row in rows]
    logits = torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    sampler = GpuSampler(VOCAB, device, use_kernels=True)
    sampler.warm_up(torch.float32)
    tokens = sampler(logits.to(device), states, outputs)
    assert tokens.tolist() == sample(logits, states, outputs)


def test_a_row_gets_the_same_token_alone_and_in_any_batch() -> None:
    rng = random.Random(5)
    rows = [any_row(rng) for _ in range(12)]
    states, outputs = [row[0] for row in rows], [row[1] for row in rows]
    logits = torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    sampler = GpuSampler(VOCAB, CPU, use_kernels=False)
    together = sampler(logits, states, outputs).tolist()
    for i in range(12):
        assert sampler(logits[i : i + 1], [states[i]], [outputs[i]]).tolist() == together[i : i + 1]


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {}, {"top_p": 0.5, "min_tokens": 3}])
def test_rows_that_are_not_finite_give_minus_one_and_spoil_no_other(fields: dict[str, Any]) -> None:
    states = [sampling_state(SamplingParams(seed=i, **fields), [1], EOS) for i in range(3)]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    expected = sample(logits, states, [[]] * 3)
    logits[1, 5] = torch.nan
    tokens = GpuSampler(VOCAB, CPU, use_kernels=False)(logits, states, [[]] * 3).tolist()
    assert tokens == [expected[0], -1, expected[2]]


def test_of_a_plain_output_only_the_length_is_used() -> None:
    state = sampling_state(SamplingParams(seed=3), [1, 2], EOS)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    sampler = GpuSampler(VOCAB, CPU, use_kernels=False)
    assert torch.equal(sampler(logits, [state], [range(5)]), sampler(logits, [state], [[9] * 5]))


def test_many_uniform_numbers_are_those_of_one() -> None:
    seeds = [0, 1, 2**63, 2**64 - 1, 12345]
    places = [0, 7, 2**20, 1, 99_999]
    found = uniforms(np.array(seeds, np.uint64), np.array(places, np.uint64))
    assert found.tolist() == [uniform(s, p) for s, p in zip(seeds, places, strict=True)]


def expected_counts(state: SamplingState, output: list[int]) -> list[int]:
    counts = [0] * 20
    for token in set(state.prompt_token_ids):
        counts[token] += IN_PROMPT
    for token in output:
        counts[token] += 1
    return counts


def test_counts_follow_sequences_that_come_go_grow_and_start_over() -> None:
    rng = random.Random(1)
    table = PenaltyTable(20, CPU)

    def fresh() -> tuple[SamplingState, list[int]]:
        prompt = [rng.randrange(20) for _ in range(6)]
        return sampling_state(SamplingParams(presence_penalty=1.0), prompt, EOS), []

    alive = [fresh() for _ in range(12)]
    for step in range(200):
        batch = rng.sample(alive, rng.randrange(1, 5 if step < 100 else 9))
        rows = table.rows_of([state for state, _ in batch], [output for _, output in batch])
        assert len(set(rows)) == len(rows)
        for row, (state, output) in zip(rows, batch, strict=True):
            assert table.counts[row].tolist() == expected_counts(state, output)
            output += [rng.randrange(20) for _ in range(rng.choice([0, 1, 1, 1, 3]))]
            if rng.random() < 0.05:
                del output[len(output) // 2 :]
        if rng.random() < 0.3:
            alive[rng.randrange(12)] = fresh()
    assert len(table.counts) <= 16
