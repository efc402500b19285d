"""flash-linear-attention's `NSAForCausalLM`: model_type `nsa`, mean pooling over l = d = l'."""

from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.family import Factor, Family
from nsa_serve.model.loading.json_file import convert
from nsa_serve.model.loading.llama import activation
from nsa_serve.model.loading.recipes import Names, Recipe, Shapes, renamed

_FORCED = 3
"""Blocks that every query reads: the first, its own and the one before."""

NAMES = Names(
    {
        "model.embed_tokens": "model.embeddings",
        "model.norm": "model.norm",
        "lm_head": "lm_head",
        "model.layers.*.input_layernorm": "model.layers.*.attn_norm",
        "model.layers.*.post_attention_layernorm": "model.layers.*.mlp_norm",
        "model.layers.*.self_attn.nsa.gates.out": "model.layers.*.attn.g_proj",
        **{
            f"model.layers.*.self_attn.{name}_proj": f"model.layers.*.attn.{name}_proj"
            for name in "qkvo"
        },
        **{
            f"model.layers.*.mlp.{name}_proj": f"model.layers.*.mlp.{name}_proj"
            for name in ("gate", "up", "down")
        },
    }
)


class _Config(msgspec.Struct, kw_only=True):
    """Fields that change what is computed; the defaults are fla's."""

    vocab_size: int = 32_000
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_heads: int = 64
    num_kv_heads: int | None = 4
    head_dim: int = 32
    qkv_bias: bool = False
    block_size: int = 64
    block_counts: int = 16
    window_size: int = 512
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    hidden_ratio: Factor | None = 4.0
    intermediate_size: int | None = None
    hidden_act: str = "swish"
    elementwise_affine: bool = True
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False


def mean_pooling(block_size: int, block_counts: int, window_size: int, **changes: Any) -> NSAConfig:
    """The dialect of fla's kernels. Raises `ConfigError` for what they do not compute so."""
    if window_size < 1:
        raise ConfigError("window_size must be at least 1: a model without a window is not served")
    fields: dict[str, Any] = {
        "compress_block": block_size,
        "compress_stride": block_size,
        "select_block": block_size,
        "num_selected": block_counts,
        "window": window_size,
        "compressor": "mean",
        "intra_block_positions": "none",
        "branch_kv": "shared",
    }
    return NSAConfig(**fields | changes)


def read_config(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    """fla's own default for `hidden_ratio` gives the width of the MLP where it is not said."""
    fla = convert(path, fields, _Config)
    if not fla.elementwise_affine:
        raise ModelLoadError(f"{path}: norms without a weight (elementwise_affine) are not read")
    if fla.block_counts < _FORCED:
        raise ModelLoadError(
            f"{path}: block_counts {fla.block_counts} leaves no place for the first block, "
            "the query's own and the one before"
        )
    try:
        return ModelConfig(
            vocab_size=fla.vocab_size,
            hidden_size=fla.hidden_size,
            num_layers=fla.num_hidden_layers,
            num_heads=fla.num_heads,
            num_kv_heads=fla.num_heads if fla.num_kv_heads is None else fla.num_kv_heads,
            head_dim=_head_dim(fla, shapes),
            intermediate_size=fla.intermediate_size or _default_width(fla),
            max_position_embeddings=fla.max_position_embeddings,
            rms_norm_eps=fla.norm_eps,
            rope_theta=fla.rope_theta,
            tie_word_embeddings=fla.tie_word_embeddings,
            attention_bias=fla.qkv_bias,
            hidden_act=activation(fla.hidden_act),
            nsa=mean_pooling(fla.block_size, fla.block_counts, fla.window_size),
        )
    except ConfigError as error:
        raise ModelLoadError(f"{path}: {error}") from None


def _head_dim(fla: _Config, shapes: Shapes) -> int:
    """As stored: some versions of fla build heads of 64 whatever the configuration says."""
    stored = shapes.get("model.layers.0.attn.q_proj.weight")
    if stored and fla.num_heads > 0 and stored[0] % fla.num_heads == 0:
        return stored[0] // fla.num_heads
    return fla.head_dim


def _default_width(fla: _Config) -> int:
    ratio = 4 if fla.hidden_ratio is None else fla.hidden_ratio
    return 256 * -(-int(fla.hidden_size * ratio * 2 / 3) // 256)


def _source(target: str, config: ModelConfig) -> Recipe:
    name = NAMES[target]
    assert name is not None, target
    return renamed(name)


FLA = Family(name="nsa", read_config=read_config, source=_source)
