"""Where a branch covers every key, it is dense causal attention."""

import msgspec
import pytest
import torch

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.model.decoder import Decoder
from tests.support.dialects import BASE, DIALECTS, model_config, random_decoder
from tests.support.paged import PagedModel, whole

LENGTH = 61
TOKENS = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(2)).tolist()
ONLY_SELECTED, ONLY_WINDOW = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def dense_twin(sparse: Decoder, *, window: bool = False) -> Decoder:
    """The same weights with dense attention over the keys of the selected or window branch."""
    config = msgspec.structs.replace(sparse.config, nsa=None)
    state = dict(sparse.state_dict())
    if window:
        for name in [n for n in state if ".nsa.k_window." in n or ".nsa.v_window." in n]:
            state[name.replace("nsa.k_window", "k_proj").replace("nsa.v_window", "v_proj")] = state[
                name
            ]
    decoder = Decoder(config)
    decoder.load_state_dict({name: w for name, w in state.items() if ".nsa." not in name})
    return decoder.requires_grad_(False)


def config_of(base: NSAConfig, gates: tuple[float, float, float], **changes: int) -> ModelConfig:
    return model_config(
        msgspec.structs.replace(base, gate="none", fixed_gates=gates, **changes), num_heads=6
    )


def assert_same(config: ModelConfig, *, window: bool = False) -> None:
    sparse = random_decoder(config)
    expected = whole(dense_twin(sparse, window=window), TOKENS)
    scale = expected.abs().max()
    for found in (whole(sparse, TOKENS), PagedModel(sparse, 16).run(TOKENS, [1, 7, 20, 3, LENGTH])):
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["base", "paper", "left_padding", "memory", "strict", "half_merge"]
)
def test_selecting_every_block_is_dense(name: str) -> None:
    assert_same(config_of(DIALECTS[name], ONLY_SELECTED, num_selected=8))


@pytest.mark.parametrize("name", ["base", "paper", "logit_mean", "floor"])
def test_a_window_as_long_as_the_context_is_dense(name: str) -> None:
    assert_same(config_of(DIALECTS[name], ONLY_WINDOW, window=LENGTH), window=True)


@pytest.mark.parametrize("name", ["base", "floor", "half_merge", "forced_on_top"])
def test_below_dense_len_the_selected_branch_is_dense(name: str) -> None:
    assert_same(config_of(DIALECTS[name], ONLY_SELECTED, dense_len=LENGTH))


def test_one_block_or_one_key_less_is_not_dense() -> None:
    """So that the identities above cannot hold by accident."""
    for gates, changes in ((ONLY_SELECTED, {"num_selected": 7}), (ONLY_WINDOW, {"window": 60})):
        sparse = random_decoder(config_of(BASE, gates, **changes))
        difference = (whole(sparse, TOKENS) - whole(dense_twin(sparse), TOKENS)).abs().amax(-1)
        assert difference[-1] > 1e-3
        assert difference[:-6].max() < 1e-3
