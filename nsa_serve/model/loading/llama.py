"""Hugging Face's Llama: config.json of model_type `llama`, RoPE in both of its spellings."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from nsa_serve.config import ModelConfig, RopeScaling
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.json_file import convert

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_LLAMA3_FIELDS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_SCALING_FIELDS = frozenset(RopeScaling.__struct_fields__)


class _LlamaConfig(msgspec.Struct, kw_only=True):
    """Fields that change what is computed; the defaults are those of transformers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    quantization_config: dict[str, Any] | None = None


def read_llama_config(path: Path, fields: dict[str, Any]) -> ModelConfig:
    """The configuration; raises `ModelLoadError` for variants that are not served."""
    llama = convert(path, fields, _LlamaConfig)
    if llama.quantization_config is not None:
        raise ModelLoadError(f"{path}: quantised weights (quantization_config) are not read")
    if llama.num_attention_heads < 1:
        raise ModelLoadError(f"{path}: num_attention_heads must be at least 1")
    rope = llama.rope_parameters or llama.rope_scaling or {}
    try:
        return _model_config(llama, rope.get("rope_theta", llama.rope_theta), _scaling(llama, rope))
    except (ConfigError, msgspec.ValidationError) as error:
        raise ModelLoadError(f"{path}: {error}") from None


def activation(name: str) -> Activation:
    """Our name of an activation that transformers names; raises `ConfigError`."""
    if name not in _ACTIVATIONS:
        raise ConfigError(f"hidden_act {name!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _model_config(
    llama: _LlamaConfig, rope_theta: Any, rope_scaling: RopeScaling | None
) -> ModelConfig:
    head_dim = llama.head_dim
    if head_dim is None:
        head_dim, rest = divmod(llama.hidden_size, llama.num_attention_heads)
        if rest:
            raise ConfigError("hidden_size is no multiple of num_attention_heads; give head_dim")
    kv_heads = llama.num_key_value_heads
    return ModelConfig(
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        num_layers=llama.num_hidden_layers,
        num_heads=llama.num_attention_heads,
        num_kv_heads=llama.num_attention_heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        intermediate_size=llama.intermediate_size,
        max_position_embeddings=llama.max_position_embeddings,
        rms_norm_eps=llama.rms_norm_eps,
        rope_theta=msgspec.convert(rope_theta, float),
        rope_scaling=rope_scaling,
        tie_word_embeddings=llama.tie_word_embeddings,
        attention_bias=llama.attention_bias,
        attention_output_bias=llama.attention_bias,
        mlp_bias=llama.mlp_bias,
        hidden_act=activation(llama.hidden_act),
    )


def _scaling(llama: _LlamaConfig, rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    fields = {name: value for name, value in rope.items() if name in _SCALING_FIELDS}
    if kind == "llama3":
        for name in _LLAMA3_FIELDS:
            if name not in rope:
                raise ConfigError(f"rope scaling llama3 needs {name}")
    if kind == "yarn":
        fields.setdefault("original_max_position_embeddings", llama.max_position_embeddings)
    return msgspec.convert({**fields, "rope_type": kind}, RopeScaling)
