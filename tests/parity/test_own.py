"""The paper, InfLLM-v2, devin and edifice, which publish no checkpoint: their presets give what the
families are defined as, in float64."""

from collections.abc import Callable

import pytest

from nsa_serve.config import ModelConfig
from nsa_serve.model.decoder import Decoder, expected_tensors
from nsa_serve.presets import find_preset
from tests.support.by_hand import Array, State, randoms, to_torch
from tests.support.originals import own
from tests.support.parity import Parity, prefixes, random_tokens

THETA = 10_000.0
SMALL = {"num_layers": 2, "head_dim": 16, "l": 8, "d": 4, "select": 16, "window": 32}

Reference = Callable[[State, list[int]], Array]
REFERENCES: dict[str, tuple[Reference, int]] = {
    "paper": (
        lambda state, tokens: own.paper(
            own.Sizes(**{**SMALL, "head_dim": 24}, n=4, eps=1e-5),
            state,
            tokens,
            theta=THETA,
            v_dim=16,
        ),
        16 * 7 + 3,
    ),
    "infllm-v2": (
        lambda state, tokens: own.infllm_v2(
            own.Sizes(**SMALL, n=6, eps=1e-6), state, tokens, theta=THETA, local=3, dense_len=64
        ),
        16 * 11 + 5,
    ),
    "devin": (
        lambda state, tokens: own.devin(own.Sizes(**SMALL, n=4, eps=1e-5), state, tokens),
        16 * 7 + 3,
    ),
    "edifice": (
        lambda state, tokens: own.edifice(
            own.Sizes(**{**SMALL, "l": 4}, n=4, eps=1e-6), state, tokens
        ),
        16 * 7 + 3,
    ),
}
"""Sizes are those of the presets' small models, said again here; and a length."""


def random_state(config: ModelConfig) -> State:
    """Under our names. Queries are short, so that no slot takes all of a query's probability and
    two blocks that it overlaps would tie."""
    state = randoms({name: tuple(shape) for name, shape in expected_tensors(config).items()})
    return {n: w * 0.5 if ".q_proj." in n else w for n, w in state.items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_preset_gives_the_logits_of_the_definition(name: str, parity: Parity) -> None:
    config = find_preset(name).small_config
    reference, length = REFERENCES[name]
    state = random_state(config)
    decoder = Decoder(config).requires_grad_(False)
    decoder.load_state_dict(to_torch(state))
    tokens = random_tokens(length)
    parity.check(name, decoder, tokens, prefixes(reference(state, tokens)))
