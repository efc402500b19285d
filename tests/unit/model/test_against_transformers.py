"""The dense decoder against transformers' Llama, where transformers can be imported."""

from typing import Any

import pytest
import torch

from nsa_serve.config import RopeScaling
from tests.support.dialects import model_config, random_decoder
from tests.support.paged import PagedModel, whole

transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(0, 97, (150,), generator=torch.Generator().manual_seed(0)).tolist()
SCALINGS: dict[str, RopeScaling | None] = {
    "plain": None,
    "linear": RopeScaling(rope_type="linear", factor=2.0),
    "llama3": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=64),
    "yarn": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
}


def llama(config: Any) -> Any:
    """transformers' model of the same architecture."""
    scaling = config.rope_scaling
    given = {name: getattr(scaling, name) for name in getattr(scaling, "__struct_fields__", ())}
    given = {name: value for name, value in given.items() if value is not None}
    if scaling is not None and scaling.rope_type == "linear":
        given = {"rope_type": "linear", "factor": scaling.factor}
    common = (
        "vocab_size hidden_size intermediate_size head_dim rms_norm_eps rope_theta attention_bias "
        "mlp_bias hidden_act tie_word_embeddings max_position_embeddings"
    )
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rope_scaling=given or None,
            attn_implementation="eager",
            **{name: getattr(config, name) for name in common.split()},
        )
    ).eval()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("biased_and_tied", [False, True])
def test_dense_logits_are_those_of_llama(scaling: str, biased_and_tied: bool) -> None:
    config = model_config(
        None,
        head_dim=16,
        rope_scaling=SCALINGS[scaling],
        tie_word_embeddings=biased_and_tied,
        attention_bias=biased_and_tied,
        attention_output_bias=biased_and_tied,
        mlp_bias=biased_and_tied,
    )
    decoder = random_decoder(config)
    reference = llama(config)
    missing, unexpected = reference.load_state_dict(decoder.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    reference.tie_weights()
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0]
    scale = expected.abs().max()
    for found in (whole(decoder, TOKENS), PagedModel(decoder, 16).run(TOKENS, [9, 40, 1, 200])):
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
