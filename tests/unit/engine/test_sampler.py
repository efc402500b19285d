"""Sampling against a float64 brute force: the whole distribution, and rows built to break it."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nsa_serve.engine import sampler
from nsa_serve.engine.sampler import sample, sampling_state, uniform
from nsa_serve.params import SamplingParams
from tests.support.naive_sampling import probabilities

PROMPT, OUTPUT, EOS = [3, 5, 5], [1, 4, 4, 4], (0, 7)
ROW = [1.3, 0.2, -0.7, 2.1, 1.9, -2.5, 0.9, 1.1, -0.1, 0.4, 0.0, -5.0]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.3},
    "top_k": {"top_k": 4},
    "top_k_one": {"top_k": 1},
    "top_k_beyond_vocabulary": {"top_k": 1000},
    "top_p": {"top_p": 0.7},
    "top_p_tiny": {"top_p": 1e-6},
    "min_p": {"min_p": 0.2},
    "min_p_one": {"min_p": 1.0},
    "all_filters": {"top_k": 7, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    "top_p_of_what_top_k_leaves": {"top_k": 3, "top_p": 0.6},
    "repetition": {"repetition_penalty": 1.7},
    "repetition_below_one": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.2},
    "frequency": {"frequency_penalty": 0.5},
    "negative_penalties": {"presence_penalty": -1.0, "frequency_penalty": -0.4},
    "bias": {"logit_bias": {2: 3.0, 3: -2.0}},
    "min_tokens": {"min_tokens": 5},
    "min_tokens_reached": {"min_tokens": 4},
    "everything": {
        "temperature": 0.8,
        "top_k": 6,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "logit_bias": {9: 2.0},
        "min_tokens": 9,
    },
}


def draw(row: list[float] | Tensor, seeds: range, output: list[int], **fields: Any) -> list[int]:
    """A token for each seed."""
    states = [sampling_state(SamplingParams(seed=seed, **fields), PROMPT, EOS) for seed in seeds]
    logits = torch.as_tensor(row, dtype=torch.float32).expand(len(seeds), -1)
    return sample(logits, states, [output] * len(seeds))


@pytest.fixture
def evenly(monkeypatch: pytest.MonkeyPatch) -> range:
    """Makes seed i of 1,000 draw the number (i + ½) / 1,000."""
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: (seed + 0.5) / 1000)
    return range(1000)


@pytest.mark.parametrize("case", CASES)
def test_even_numbers_reproduce_the_distribution(case: str, evenly: range) -> None:
    fields = CASES[case]
    expected = probabilities(ROW, SamplingParams(**fields), prompt=PROMPT, output=OUTPUT, stop=EOS)
    counts = Counter(draw(ROW, evenly, OUTPUT, **fields))
    for token, probability in enumerate(expected):
        assert abs(counts[token] / 1000 - probability) <= 1e-3, f"token {token}"
        assert probability > 0.0 or counts[token] == 0


@pytest.mark.parametrize("case", ["plain", "all_filters", "everything"])
def test_seeds_sample_the_distribution(case: str) -> None:
    fields = CASES[case]
    expected = probabilities(ROW, SamplingParams(**fields), prompt=PROMPT, output=OUTPUT, stop=EOS)
    counts = Counter(draw(ROW, range(3000), OUTPUT, **fields))
    likely = [token for token, probability in enumerate(expected) if probability > 0]
    assert set(counts) <= set(likely)
    chi_square = sum(
        (counts[token] - 3000 * expected[token]) ** 2 / (3000 * expected[token]) for token in likely
    )
    freedom = len(likely) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 4  # far beyond the 99.9th percentile


def test_numbers_of_neighbouring_seeds_and_places_are_uniform_and_unrelated() -> None:
    numbers = np.array([[uniform(seed, place) for place in range(64)] for seed in range(64)])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert len(np.unique(numbers)) == numbers.size
    counts, _ = np.histogram(numbers, bins=16, range=(0, 1))
    assert ((counts - 256) ** 2 / 256).sum() < 40
    for a, b in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06


def test_greedy_takes_the_highest_and_the_lower_index_on_a_tie() -> None:
    row = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    assert draw(row, range(1), [], temperature=0.0) == [int(row.argmax())]
    row[[40_000, 123, 7_000]] = 99.0
    assert draw(row, range(1), [], temperature=0.0) == [123]


@pytest.mark.parametrize("fields", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-8, 1e-3])
def test_the_coldest_temperatures_are_greedy(temperature: float, fields: dict[str, Any]) -> None:
    tokens = draw(ROW, range(5), [], temperature=temperature, **fields)
    assert tokens == [3] * 5


@pytest.mark.parametrize("fields", [{}, {"top_p": 0.9}, {"top_k": 1500}, {"min_p": 0.5}])
def test_the_numbers_next_to_zero_and_one_never_pick_what_has_no_probability(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = torch.full((2000,), -torch.inf)
    row[[700, 900]] = torch.tensor([1.0, 1.2])
    ends = [0.0, 1.0 - 2.0**-53]
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: ends[seed])
    assert set(draw(row, range(2), [], **fields)) == {700, 900}


def kept(row: Tensor, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[int, int]:
    """The first and the last candidate of a row whose logits descend."""
    ends = [0.0, 1.0 - 2.0**-50]
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: ends[seed])
    first, last = draw(row, range(2), [], **fields)
    return first, last


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_k": 1000},
        {"top_k": 1024},
        {"top_k": 1025},
        {"top_k": 30_000},
        {"top_k": 1500, "top_p": 0.1},
        {"top_k": 1500, "top_p": 0.6},
        {"top_k": 1500, "top_p": 0.9},
        {"top_k": 40_000, "top_p": 0.9},
        {"min_p": 0.7},
        {"min_p": 0.7, "top_k": 20_000, "top_p": 0.5},
    ],
)
@pytest.mark.parametrize("slope", [0.0, 1e-5, 2e-4])
def test_a_nearly_flat_row_of_50000_keeps_what_the_brute_force_keeps(
    slope: float, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = -slope * torch.arange(50_000, dtype=torch.float64)
    expected = np.flatnonzero(probabilities(row.tolist(), SamplingParams(**fields)))
    if slope:
        first, last = kept(row.float(), monkeypatch, **fields)
        assert first == 0
        assert abs(last - (len(expected) - 1)) <= 2
    else:
        counts = len(sampler._filter(torch.full((50_000,), 2e-5), SamplingParams(**fields))[0])
        assert abs(counts - len(expected)) <= 2


def test_ties_at_the_border_of_top_k_keep_exactly_k(evenly: range) -> None:
    counts = Counter(draw([1.0, 2.0, 2.0, 2.0, 2.0, 0.0], evenly, [], top_k=3))
    assert len(counts) == 3
    assert set(counts) <= {1, 2, 3, 4}


def test_a_one_hot_row_gives_its_token_with_any_filter() -> None:
    row = torch.zeros(5000)
    row[4321] = 200.0
    for fields in CASES.values():
        if "min_tokens" not in fields:
            assert set(draw(row, range(5), OUTPUT, **fields)) == {4321}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_minus_100_on_the_whole_vocabulary_still_gives_a_token(
    temperature: float,
) -> None:
    bias = dict.fromkeys(range(len(ROW)), -100.0)
    even = draw(ROW, range(50), [], temperature=temperature)
    assert draw(ROW, range(50), [], temperature=temperature, logit_bias=bias) == even


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_stop_token_is_sampled_before_min_tokens(temperature: float) -> None:
    row = torch.zeros(10)
    row[[0, 7, 9]] = 50.0
    fields = {"temperature": temperature, "min_tokens": 3, "stop_token_ids": (9,)}
    for length in range(3):
        assert not {0, 7, 9} & set(draw(row, range(40), [2] * length, **fields))
    assert set(draw(row, range(40), [2] * 3, **fields)) <= {0, 7, 9}
    ignored = set(draw(row, range(40), [2], **fields, ignore_eos=True))
    assert ignored <= {0, 7}


def test_a_row_gets_the_same_token_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    cases = [SamplingParams(seed=i, **fields) for i, fields in enumerate(CASES.values())]
    cases += [SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, min_tokens=9)]
    logits = torch.randn(len(cases), 3000, generator=generator) * 2
    states = [sampling_state(params, PROMPT, EOS) for params in cases]
    outputs = [OUTPUT[: i % 5] for i in range(len(cases))]
    alone = [
        sample(logits[i : i + 1], states[i : i + 1], outputs[i : i + 1])[0]
        for i in range(len(cases))
    ]
    assert sample(logits, states, outputs) == alone
    order = torch.randperm(len(cases), generator=generator).tolist()[: len(cases) // 2]
    part = sample(logits[order], [states[i] for i in order], [outputs[i] for i in order])
    assert part == [alone[i] for i in order]


def test_the_place_in_the_sequence_and_the_seed_decide_and_nothing_else() -> None:
    row = torch.zeros(1, 1000)

    def token(seed: int | None, prompt: list[int], output: list[int]) -> int:
        state = sampling_state(SamplingParams(seed=seed), prompt, EOS)
        return sample(row, [state], [output])[0]

    assert token(4, [1, 2, 3], [4, 5]) == token(4, [9, 9, 9], [8, 8])
    assert token(4, [1, 2, 3], [4, 5]) != token(4, [1, 2, 3], [4])
    assert token(4, [1, 2, 3], [4, 5]) != token(5, [1, 2, 3], [4, 5])
    assert token(-1, [1], []) == token(2**64 - 1, [1], [])
    assert len({token(None, [1], []) for _ in range(20)}) > 10


def test_sampling_leaves_the_logits_as_they_were() -> None:
    logits = torch.tensor([ROW])
    state = sampling_state(SamplingParams(**CASES["everything"]), PROMPT, EOS)
    sample(logits, [state], [OUTPUT])
    assert torch.equal(logits, torch.tensor([ROW]))
