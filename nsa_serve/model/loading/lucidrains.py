"""lucidrains' native-sparse-attention-pytorch (`Transformer`).

It has no published format: the arguments of its constructor as config.json, and its state dict.
Compression reads raw keys against raw queries; each window reads one key more than its length.
"""

import re
from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.family import Factor, Family, Fields
from nsa_serve.model.loading.json_file import convert
from nsa_serve.model.loading.lucidrains_phi import phi_recipe, read_phi
from nsa_serve.model.loading.recipes import Names, Recipe, Shapes, layer_of, renamed, rows

FLOAT32_EPS = 2.0**-23
"""ε of a torch.nn.RMSNorm that is not given any."""

NAMES = Names(
    {
        "model.embed_tokens": "token_emb",
        "model.norm": "norm",
        "lm_head": "to_logits",
        "model.layers.*.input_layernorm": "layers.*.0.norm",
        "model.layers.*.self_attn.nsa.gates.out": "layers.*.0.to_strategy_combine.0",
        "model.layers.*.self_attn.o_proj": "layers.*.0.combine_heads",
        "model.layers.*.post_attention_layernorm": "layers.*.1.0",
        "model.layers.*.mlp.up_proj": "layers.*.1.1",
        "model.layers.*.mlp.down_proj": "layers.*.1.3",
    }
)
_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_MEMORY = ("self_attn.nsa.k_memory", "self_attn.nsa.v_memory")
_POSITIONS = {
    "self_attn.nsa.k_positions": "k_intrablock_positions",
    "self_attn.nsa.v_positions": "v_intrablock_positions",
}


class _Attention(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `SparseAttention`; the defaults are its own."""

    sliding_window_size: int
    compress_block_size: int
    compress_block_sliding_stride: int
    selection_block_size: int
    num_selected_blocks: int
    num_compressed_mem_kv: int = 1
    norm: bool = True
    use_diff_topk: bool = False
    use_triton_kernel: bool = False
    query_heads_share_selected_kv: bool = True
    compress_mlp: str | dict[str, Any] | None = None
    compress_mlp_expand_factor: Factor = 1.0


class _Config(msgspec.Struct, kw_only=True):
    """Arguments of `Transformer`; the defaults are its own."""

    num_tokens: int
    dim: int
    depth: int
    dim_head: int = 64
    heads: int = 8
    kv_heads: int | None = None
    ff_expansion_factor: Factor = 4.0
    use_sparse_attn: bool = False
    causal: bool = True
    sparse_attn_kwargs: _Attention
    max_position_embeddings: int = 65_536
    """No argument of it: it knows no limit."""


def read_config(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    """The configuration; raises `ModelLoadError` for variants that are not served."""
    arguments = convert(path, fields, _Config)
    try:
        _refuse(arguments)
        kv_heads = arguments.heads if arguments.kv_heads is None else arguments.kv_heads
        return ModelConfig(
            vocab_size=arguments.num_tokens,
            hidden_size=arguments.dim,
            num_layers=arguments.depth,
            num_heads=arguments.heads,
            num_kv_heads=kv_heads,
            head_dim=arguments.dim_head,
            intermediate_size=int(arguments.dim * arguments.ff_expansion_factor),
            max_position_embeddings=arguments.max_position_embeddings,
            rms_norm_eps=FLOAT32_EPS,
            rope_interleaved=True,
            mlp="plain",
            mlp_bias=True,
            hidden_act="gelu",
            nsa=_dialect(arguments.sparse_attn_kwargs, arguments.dim_head, kv_heads, shapes),
        )
    except ConfigError as error:
        raise ModelLoadError(f"{path}: {error}") from None


def _refuse(arguments: _Config) -> None:
    attention = arguments.sparse_attn_kwargs
    if not (arguments.use_sparse_attn and arguments.causal):
        raise ConfigError("use_sparse_attn and causal must be true, nothing else is read")
    if not attention.norm:
        raise ConfigError("norm must be true: layers without one are not read")
    if not attention.query_heads_share_selected_kv:
        raise ConfigError("query_heads_share_selected_kv must be true: a group selects together")
    if attention.num_compressed_mem_kv < 1:
        raise ConfigError("num_compressed_mem_kv must be at least 1")
    if attention.num_selected_blocks < 1:
        raise ConfigError("num_selected_blocks must be at least 1")


def _dialect(attention: _Attention, dim: int, kv_heads: int, shapes: Shapes) -> NSAConfig:
    phi = read_phi(
        attention.compress_mlp,
        shapes,
        block=attention.compress_block_size,
        dim=dim,
        kv_heads=kv_heads,
        expand=attention.compress_mlp_expand_factor,
    )
    return NSAConfig(
        compress_block=attention.compress_block_size,
        compress_stride=attention.compress_block_sliding_stride,
        select_block=attention.selection_block_size,
        num_selected=attention.num_selected_blocks,
        window=attention.sliding_window_size + 1,
        **phi,
        intra_block_positions="kv",
        padding="left",
        memory_slots=attention.num_compressed_mem_kv,
        compressed_rope="none",
        visibility="strict",
        importance="logit_mean",
        init_blocks=0,
        local_blocks=1,
        forced_counted=False,
        selection_floor=1e-10,
        gate_bias=True,
        branch_kv="shared",
    )


def _source(target: str, config: ModelConfig) -> Recipe:
    name = NAMES[target]
    if name is not None:
        return renamed(name)
    layer, place = layer_of(target)
    prefix = f"layers.{layer}.0."
    if place in _QKV:
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        sizes = tuple(count * config.head_dim for count in heads)
        return rows(f"{prefix}to_qkv.weight", sizes, _QKV.index(place))
    if place in _POSITIONS:
        return renamed(prefix + _POSITIONS[place])
    if place in _MEMORY:
        part = _MEMORY.index(place)
        return Recipe((f"{prefix}compress_mem_kv",), lambda both: both.unbind(0)[part])
    which, _, parameter = place.removeprefix("self_attn.nsa.compress_").partition(".")
    assert config.nsa is not None
    return phi_recipe(f"{prefix}{which}_compress", parameter, config.nsa, config.num_kv_heads)


def _fits(fields: Fields) -> bool:
    return "model_type" not in fields and {"num_tokens", "dim", "depth"} <= fields.keys()


LUCIDRAINS = Family(
    name="lucidrains",
    read_config=read_config,
    fits=_fits,
    source=_source,
    ignored=re.compile(r"layers\.\d+\.0\.rotary_emb\.freqs"),
    pickled=True,
)
