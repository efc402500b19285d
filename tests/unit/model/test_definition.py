"""The definition against a reference written from the paper's formulas, in every dialect."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from nsa_serve.config import ModelConfig, RopeScaling
from nsa_serve.model.definition import WholeSequence
from tests.support.dialects import (
    BASE,
    DIALECTS,
    MODELS,
    diffuse_decoder,
    model_config,
    random_decoder,
)
from tests.support.naive_nsa import NaiveAttention, NaiveDecoder
from tests.support.paged import whole

LENGTH = 53
TOKENS = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(3)).tolist()
LLAMA3 = RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=32)


def _dialect(name: str, **changes: Any) -> ModelConfig:
    return model_config(msgspec.structs.replace(DIALECTS[name], **changes))


COMBINED: dict[str, ModelConfig] = {
    "group_of_three": model_config(DIALECTS["memory"], num_heads=6),
    "group_of_one": model_config(DIALECTS["logit_mean"], num_kv_heads=4),
    "group_gates_from_hidden": _dialect("base", gate_scope="group", gate_hidden=8),
    "softmax_shared_gates": _dialect("base", gate_scope="shared", gate="softmax"),
    "conv_per_head": _dialect("conv_shared", compressor_shared=False),
    "grouped_mlp_shared": _dialect("grouped_mlp", compressor_shared=True),
    "independent_block_start": _dialect("paper", compressed_rope="block_start"),
    "independent_raw_keys": _dialect("paper", compressed_rope="none"),
    "left_block_start": _dialect("left_padding", compressed_rope="block_start"),
    "left_max_pool": _dialect("max_pool", padding="left"),
    "left_logit_mean": _dialect("logit_mean", padding="left"),
    "strict_wide_slots": _dialect("wide_slots", visibility="strict"),
    "strict_memory": _dialect("memory", visibility="strict"),
    "half_merge_on_top": _dialect("half_merge", forced_counted=False),
    "half_merge_with_first": _dialect("half_merge", init_blocks=1),
    "prob_sum_floor": _dialect("floor", importance="prob_sum", forced_counted=True),
    "llama3_interleaved": model_config(BASE, rope_scaling=LLAMA3, rope_interleaved=True),
    "gelu_tanh": model_config(BASE, hidden_act="gelu_tanh"),
    "relu": model_config(BASE, hidden_act="relu", qk_norm=True),
    "biased_independent": model_config(DIALECTS["paper"], attention_bias=True, qk_norm=True),
}
ALL = MODELS | COMBINED


def relative_error(found: Tensor, expected: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.abs(found.double().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ALL)
def test_a_decoder_gives_the_logits_of_the_naive_reference(name: str) -> None:
    decoder = diffuse_decoder(ALL[name], seed=0)
    expected = NaiveDecoder(ALL[name], decoder.state_dict()).logits(TOKENS)
    assert relative_error(whole(decoder, TOKENS), expected) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_an_attention_layer_in_float64_is_that_of_the_naive_reference(name: str) -> None:
    config = ALL[name]
    decoder = diffuse_decoder(config, seed=6).double()
    layer = decoder.attentions[-1]
    x = torch.randn(LENGTH, config.hidden_size, generator=torch.Generator().manual_seed(0))
    x = x.double()
    found = layer(x, decoder.rope.at(torch.arange(LENGTH)), WholeSequence(decoder.rope))
    nsa = config.nsa if config.kinds[-1] == "nsa" else None
    weights = {n: w.double().numpy() for n, w in layer.state_dict().items()}
    assert relative_error(found, NaiveAttention(config, nsa, weights)(x.numpy())) < 1e-5


@pytest.mark.parametrize("name", DIALECTS)
def test_the_first_tokens_which_see_no_slot_are_finite(name: str) -> None:
    decoder = random_decoder(MODELS[name])
    for length in (1, 2, 4, 9):
        assert bool(whole(decoder, TOKENS[:length]).isfinite().all())
