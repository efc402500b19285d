"""config.json of Hugging Face's Llama, as transformers 4 and 5 write it."""

from pathlib import Path
from typing import Any

import pytest

from nsa_serve.config import ModelConfig, RopeScaling
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.llama import read_llama_config

REQUIRED = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _read(**fields: Any) -> ModelConfig:
    return read_llama_config(Path("config.json"), {**REQUIRED, **fields})


def test_what_is_left_out_has_transformers_defaults() -> None:
    config = _read()
    assert (config.num_kv_heads, config.head_dim) == (4, 8)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (2048, 1e-6)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)
    assert not config.tie_word_embeddings
    assert not config.attention_bias
    assert not config.mlp_bias


def test_head_dim_can_differ_from_hidden_over_heads() -> None:
    assert _read(head_dim=16, num_key_value_heads=2).head_dim == 16


def test_attention_bias_is_on_the_output_too() -> None:
    config = _read(attention_bias=True, mlp_bias=True)
    assert config.attention_bias
    assert config.attention_output_bias
    assert config.mlp_bias


def test_both_spellings_of_rope_mean_the_same() -> None:
    old = _read(rope_theta=5e5, rope_scaling=LLAMA3)
    new = _read(rope_parameters={**LLAMA3, "rope_theta": 5e5})
    assert old == new
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def test_default_rope_parameters_are_no_scaling() -> None:
    config = _read(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


def test_linear_scaling_under_its_oldest_key() -> None:
    scaling = _read(rope_scaling={"type": "linear", "factor": 2}).rope_scaling
    assert scaling == RopeScaling(rope_type="linear", factor=2.0)


def test_yarn_stretches_the_models_own_context_unless_told() -> None:
    scaling = _read(
        max_position_embeddings=4096, rope_scaling={"rope_type": "yarn", "factor": 4.0}
    ).rope_scaling
    assert scaling is not None
    assert scaling.original_max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_theta": "x"}}, "float"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "mish"}, "'mish'"),
        ({"hidden_size": 30}, "head_dim"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any], cause: str) -> None:
    with pytest.raises(ModelLoadError, match=cause) as caught:
        _read(**fields)
    assert str(caught.value).startswith("config.json: ")
