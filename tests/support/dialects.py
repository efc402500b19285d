"""Small models of every dialect field, with random weights."""

from typing import Any

import msgspec
import torch

from nsa_serve.config import ModelConfig, NSAConfig, RopeScaling
from nsa_serve.model.decoder import Decoder

BASE = NSAConfig(
    compress_block=8,
    compress_stride=4,
    select_block=8,
    num_selected=4,
    window=11,
    compressor="mean",
    intra_block_positions="none",
    branch_kv="shared",
    init_blocks=1,
    local_blocks=2,
)


def _with(**changes: Any) -> NSAConfig:
    return msgspec.structs.replace(BASE, **changes)


DIALECTS: dict[str, NSAConfig] = {
    "base": BASE,
    "paper": _with(branch_kv="independent", compressor="mlp", intra_block_positions="kv"),
    "built_in": _with(gate="none", fixed_gates=(0.0, 1.0, 0.0)),
    "two_fixed_gates": _with(gate="none", fixed_gates=(0.5, 0.0, 2.0)),
    "no_overlap": _with(compress_block=8, compress_stride=8),
    "wide_slots": _with(compress_block=16, compress_stride=4),
    "wide_blocks": _with(select_block=16, num_selected=3),
    "narrow_blocks": _with(select_block=4, compress_block=4, compress_stride=4),
    "weighted": _with(compressor="weighted"),
    "linear": _with(compressor="linear", intra_block_positions="k"),
    "conv_shared": _with(compressor="conv", compressor_shared=True),
    "grouped_mlp": _with(compressor="grouped_mlp", compressor_hidden=24, compressor_act="gelu"),
    "attention_pool": _with(compressor="attention_pool"),
    "single_projection": _with(compressor="single_projection", intra_block_positions="kv"),
    "transformer": _with(compressor="transformer", compressor_layers=2, compressor_heads=4),
    "left_padding": _with(padding="left", intra_block_positions="kv", compressor="mlp"),
    "memory": _with(memory_slots=2),
    "block_start": _with(compressed_rope="block_start", compressor="linear"),
    "raw_keys": _with(compressed_rope="none"),
    "strict": _with(visibility="strict"),
    "max_pool": _with(importance="max_pool"),
    "logit_mean": _with(importance="logit_mean", init_blocks=0, local_blocks=1),
    "forced_on_top": _with(forced_counted=False, num_selected=2),
    "no_forced": _with(init_blocks=0, local_blocks=0),
    "half_merge": _with(selection="half_merge", init_blocks=0, local_blocks=1),
    "floor": _with(
        selection_floor=0.05,
        importance="logit_mean",
        init_blocks=0,
        local_blocks=1,
        forced_counted=False,
    ),
    "softmax_gates": _with(gate="softmax", gate_bias=True, gate_hidden=12),
    "shared_gates": _with(gate_scope="shared"),
    "query_gates": _with(gate_scope="group", gate_input="query_mean", gate_hidden=8),
    "constant_gates": _with(gate_input="constant", gate="softmax", gate_scope="group"),
    "dense_len": _with(dense_len=41, num_selected=3),
    "window_of_one": _with(window=1),
    "tied_phi": _with(compressor="linear", compressor_tied=True, intra_block_positions="kv"),
    "lucidrains": _with(
        compressor="mlp",
        intra_block_positions="kv",
        padding="left",
        memory_slots=1,
        compressed_rope="none",
        visibility="strict",
        importance="logit_mean",
        init_blocks=0,
        local_blocks=1,
        forced_counted=False,
        selection_floor=1e-10,
        gate_bias=True,
    ),
}


def model_config(nsa: NSAConfig | None, **changes: Any) -> ModelConfig:
    """Two layers, four query heads over two kv heads."""
    fields: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "nsa": nsa,
    }
    return ModelConfig(**{**fields, **changes})


MODELS: dict[str, ModelConfig] = {
    "dense": model_config(None),
    "mixed_layers": model_config(BASE, layer_kinds=("dense", "nsa")),
    "odd_group": model_config(BASE, num_heads=6),
    "one_kv_head": model_config(BASE, num_kv_heads=1),
    "wide_values": model_config(BASE, v_head_dim=12),
    "narrow_values_independent": model_config(DIALECTS["paper"], v_head_dim=4),
    "tied_normed_biased": model_config(
        BASE,
        tie_word_embeddings=True,
        qk_norm=True,
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
    ),
    "interleaved": model_config(BASE, rope_interleaved=True),
    "yarn": model_config(
        BASE,
        rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    ),
    "layer_norm": model_config(BASE, norm="layer"),
    "plain_mlp": model_config(BASE, mlp="plain", mlp_bias=True, hidden_act="gelu"),
    "learned_positions": model_config(DIALECTS["block_start"], positions="learned"),
    "no_positions": model_config(DIALECTS["raw_keys"], positions="none"),
    "learned_positions_dense": model_config(
        None, positions="learned", norm="layer", mlp="plain", tie_word_embeddings=True
    ),
    **{name: model_config(nsa) for name, nsa in DIALECTS.items()},
}


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that attention is sharp and every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config)
    for name, parameter in decoder.named_parameters():
        scale = 0.3 if parameter.ndim < 2 else 1.5 / parameter.shape[-1] ** 0.5
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.data = 1.0 + noise if "norm" in name else noise
    return decoder.requires_grad_(False)


def diffuse_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """A random decoder whose queries are short. Where one slot takes all of a query's mass, the two
    blocks that it overlaps tie to within rounding, and float32 may choose the other."""
    decoder = random_decoder(config, seed)
    for attention in decoder.attentions:
        attention.q_proj.weight.mul_(0.25)
        if attention.q_norm is not None:
            attention.q_norm.weight.mul_(0.25)
    return decoder
