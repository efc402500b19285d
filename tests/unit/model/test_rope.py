"""Rotary embedding against complex numbers and the published frequency formulas."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from nsa_serve.config import RopeScaling
from nsa_serve.model.rope import Rope, inverse_frequencies
from tests.support.dialects import model_config
from tests.support.naive_rope import amplitude, frequency, rotate

SCALINGS: dict[str, RopeScaling | None] = {
    "plain": None,
    "linear": RopeScaling(rope_type="linear", factor=3.0),
    "llama3.1": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=8192),
    "llama3.2": RopeScaling(
        rope_type="llama3",
        factor=32.0,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
    "llama3_narrow": RopeScaling(
        rope_type="llama3",
        factor=2.0,
        original_max_position_embeddings=100,
        low_freq_factor=2.0,
        high_freq_factor=3.0,
    ),
    "yarn": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=4096),
    "yarn_deepseek": RopeScaling(
        rope_type="yarn",
        factor=40.0,
        original_max_position_embeddings=4096,
        mscale=0.707,
        mscale_all_dim=0.5,
    ),
    "yarn_given": RopeScaling(
        rope_type="yarn",
        factor=16.0,
        original_max_position_embeddings=2048,
        beta_fast=20.0,
        beta_slow=2.0,
        attention_factor=1.25,
    ),
    "yarn_short": RopeScaling(rope_type="yarn", factor=2.0, original_max_position_embeddings=8),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10_000.0), (128, 500_000.0), (8, 10_000.0)])
def test_frequencies_are_the_published_ones(name: str, head_dim: int, theta: float) -> None:
    scaling = SCALINGS[name]
    found, scale = inverse_frequencies(head_dim, theta, scaling)
    expected = [frequency(pair, head_dim, theta, scaling) for pair in range(head_dim // 2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert scale == pytest.approx(amplitude(scaling), rel=1e-12)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    scaling = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=4096)
    plain, _ = inverse_frequencies(128, 10_000.0, None)
    found, scale = inverse_frequencies(128, 10_000.0, scaling)
    turns = 4096 * plain / (2 * math.pi)
    torch.testing.assert_close(found[turns > 40], plain[turns > 40])
    torch.testing.assert_close(found[turns < 0.8], plain[turns < 0.8] / 4)
    assert scale == pytest.approx(0.1 * math.log(4.0) + 1.0)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", SCALINGS)
def test_heads_turn_like_complex_numbers(name: str, interleaved: bool) -> None:
    fields: dict[str, Any] = {"rope_interleaved": interleaved, "rope_scaling": SCALINGS[name]}
    config = model_config(None, head_dim=16, **fields)
    positions = [0, 1, 5, 1000, 131_071]
    x = torch.randn(len(positions), 3, 16, generator=torch.Generator().manual_seed(0))
    found = Rope(config).at(torch.tensor(positions))(x)
    for row, position in enumerate(positions):
        for head in range(3):
            expected = rotate(x[row, head].double().numpy(), position, config)
            np.testing.assert_allclose(found[row, head].numpy(), expected, atol=2e-6)


def test_scores_depend_on_the_distance_only() -> None:
    rope = Rope(model_config(None, head_dim=64))
    q, k = torch.randn(2, 1, 1, 64, generator=torch.Generator().manual_seed(1))

    def score(query: int, key: int) -> float:
        turned_q, turned_k = rope.at(torch.tensor([query]))(q), rope.at(torch.tensor([key]))(k)
        return float((turned_q * turned_k).sum())

    for start in (0, 100, 60_000):
        assert score(start + 17, start) == pytest.approx(score(17, 0), abs=1e-4)
