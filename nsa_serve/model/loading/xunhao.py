"""XunhaoLai's native-sparse-attention-triton (`ToyNSALlama`), and FSA, which differs in its gates.

Neither has a published format: the fields of the model's dataclass as config.json, and its state
dict. φ reads raw keys; its result is rotated at the position of the first token that it read.
"""

from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.config import CompressorKind, ModelConfig, NSAConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.family import Family, Fields
from nsa_serve.model.loading.json_file import convert
from nsa_serve.model.loading.llama import read_llama_config
from nsa_serve.model.loading.recipes import Names, Recipe, Shapes, layer_of, renamed

_GATE = "layers.0.nsa.gate.0.weight"
_BRANCHES = 3
_COMPRESSORS: dict[str, CompressorKind] = {
    "avgpool": "mean",
    "weightedpool": "weighted",
    "linear": "linear",
}
_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128_288,
    "max_position_embeddings": 131_072,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
"""Those of the dataclass."""

NAMES = Names(
    {
        "model.embed_tokens": "embedding",
        "model.norm": "norm",
        "lm_head": "lm_head",
        "model.layers.*.input_layernorm": "layers.*.attn_norm",
        "model.layers.*.post_attention_layernorm": "layers.*.ffn_norm",
        "model.layers.*.self_attn.nsa.gates.out": "layers.*.nsa.gate.0",
        **{f"model.layers.*.self_attn.{n}_proj": f"layers.*.nsa.proj_{n}" for n in "qkvo"},
        **{
            f"model.layers.*.mlp.{name}_proj": f"layers.*.ffn.{name}_proj"
            for name in ("gate", "up", "down")
        },
    }
)
_BARE = {
    "self_attn.nsa.k_positions": "nsa.intra_block_pe",
    "self_attn.nsa.compress_k.weight": "nsa.compress_key",
    "self_attn.nsa.compress_v.weight": "nsa.compress_value",
    "self_attn.nsa.compress_k.layers.0.weight": "nsa.compress_key",
    "self_attn.nsa.compress_v.layers.0.weight": "nsa.compress_value",
}
"""Parameters of a layer that are no module's `weight`."""


class _Config(msgspec.Struct, kw_only=True):
    """What is added to a Llama; the defaults are those of the dataclass."""

    compress_type: str = "weightedpool"
    kernel_size: int = 32
    kernel_stride: int = 16
    block_size: int = 64
    topk: int = 16
    init_blocks: int = 1
    local_blocks: int = 2
    window_size: int = 512


def read_config(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    """Gates per query head (XunhaoLai) or per token (FSA), as `model_type` says or as stored."""
    llama, own = read_llama_config(path, _LLAMA_DEFAULTS | fields), convert(path, fields, _Config)
    if own.compress_type not in _COMPRESSORS:
        known = ", ".join(_COMPRESSORS)
        raise ModelLoadError(f"{path}: compress_type {own.compress_type!r} is none of {known}")
    one_gate = shapes.get(_GATE, (0,))[0] == _BRANCHES
    if (model_type := fields.get("model_type")) is not None:
        one_gate = model_type == FSA.name
    try:
        nsa = NSAConfig(
            compress_block=own.kernel_size,
            compress_stride=own.kernel_stride,
            select_block=own.block_size,
            num_selected=own.topk,
            window=own.window_size + 1,  # flash attention counts the keys before the query's own
            compressor=_COMPRESSORS[own.compress_type],
            intra_block_positions="k",
            compressed_rope="block_start",
            init_blocks=own.init_blocks,
            local_blocks=own.local_blocks,
            gate_scope="shared" if one_gate else "head",
            branch_kv="shared",
        )
        return msgspec.structs.replace(llama, nsa=nsa)
    except ConfigError as error:
        raise ModelLoadError(f"{path}: {error}") from None


def _source(target: str, config: ModelConfig) -> Recipe:
    name = NAMES[target]
    if name is None:
        layer, place = layer_of(target)
        name = f"layers.{layer}.{_BARE[place]}"
    return renamed(name)


def _fits(fields: Fields) -> bool:
    return "model_type" not in fields and {"kernel_size", "kernel_stride", "topk"} <= fields.keys()


XUNHAO = Family(name="xunhao", read_config=read_config, fits=_fits, source=_source, pickled=True)
FSA = Family(name="fsa", read_config=read_config, source=_source, pickled=True)
