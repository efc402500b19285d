"""Architectures by name: every public NSA family, and what training one begins with.

Sizes are those that the family's own code or model has where it names any; where it names none,
the summary says what was chosen. Imports no torch.
"""

import msgspec

from nsa_serve.config import ModelConfig, NSAConfig, RopeScaling
from nsa_serve.errors import ConfigError
from nsa_serve.preset import Preset, TrainingDefaults

_SMALL_LENGTHS = {
    "compress_block": 8,
    "compress_stride": 4,
    "select_block": 16,
    "num_selected": 4,
    "window": 32,
}

_PAPER = Preset(
    name="paper",
    summary="The paper's 27B model: its attention and sizes, K/V of its own for each branch. Its "
    "mixture of experts is one gated MLP here, so that as many parameters are there as it has "
    "active; the hidden widths of φ and of the gates are a choice.",
    config=ModelConfig(
        vocab_size=102_400,
        hidden_size=2560,
        num_layers=30,
        num_heads=64,
        num_kv_heads=4,
        head_dim=192,
        v_head_dim=128,
        intermediate_size=2304,
        max_position_embeddings=32_768,
        nsa=NSAConfig(compressor="mlp", compressor_hidden=512, gate_hidden=256),
    ),
    small={
        "head_dim": 24,
        "v_head_dim": 16,
        "nsa": {**_SMALL_LENGTHS, "compressor_hidden": 64, "gate_hidden": 32},
    },
)

_FLA = Preset(
    name="fla",
    summary="NSAForCausalLM of flash-linear-attention with its default configuration.",
    config=ModelConfig(
        vocab_size=32_000,
        hidden_size=2048,
        num_layers=24,
        num_heads=64,
        num_kv_heads=4,
        head_dim=32,
        intermediate_size=5632,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        nsa=NSAConfig(
            compress_block=64,
            compress_stride=64,
            compressor="mean",
            intra_block_positions="none",
            branch_kv="shared",
        ),
    ),
    small={"nsa": {"compress_block": 16, "compress_stride": 16, "select_block": 16,
                   "num_selected": 4, "window": 32}},
)  # fmt: skip

_NSA_1B = Preset(
    name="nsa-1b",
    summary="LlamaNSAForCausalLM: a Llama whose selection merges two halves, as the first kernels "
    "of flash-linear-attention did. The attention is the checkpoint's; the sizes are Llama 3.2 "
    "1B's, with two kv heads because those kernels need sixteen query heads for each.",
    config=ModelConfig(
        vocab_size=128_256,
        hidden_size=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=8192,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        tie_word_embeddings=True,
        nsa=NSAConfig(
            compress_block=16,
            compress_stride=16,
            select_block=16,
            window=128,
            compressor="mean",
            intra_block_positions="none",
            init_blocks=0,
            local_blocks=1,
            selection="half_merge",
            branch_kv="shared",
        ),
    ),
    small={"nsa": {"num_selected": 4, "window": 32}},
)

_XUNHAO_NSA = NSAConfig(
    window=513,
    compressor="weighted",
    intra_block_positions="k",
    compressed_rope="block_start",
    branch_kv="shared",
)
_XUNHAO = Preset(
    name="xunhao",
    summary="ToyNSALlama of XunhaoLai's native-sparse-attention-triton with its defaults: learned "
    "weights as φ; `linear` and `mean` are its others.",
    config=ModelConfig(
        vocab_size=128_288,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=2,
        head_dim=128,
        intermediate_size=14_336,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-6,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(
            rope_type="llama3", factor=8.0, original_max_position_embeddings=8192
        ),
        nsa=_XUNHAO_NSA,
    ),
    small={"nsa": {**_SMALL_LENGTHS, "window": 33}},
)

_FSA = Preset(
    name="fsa",
    summary="The same model in Flash-Sparse-Attention: three gates for a token, not for a head.",
    config=msgspec.structs.replace(
        _XUNHAO.config, nsa=msgspec.structs.replace(_XUNHAO_NSA, gate_scope="shared")
    ),
    small=_XUNHAO.small,
)

_LUCIDRAINS = Preset(
    name="lucidrains",
    summary="Transformer of lucidrains' native-sparse-attention-pytorch, for bytes.",
    config=ModelConfig(
        vocab_size=256,
        hidden_size=512,
        num_layers=6,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=2048,
        max_position_embeddings=8192,
        rms_norm_eps=1.1920929e-07,
        rope_interleaved=True,
        mlp="plain",
        mlp_bias=True,
        hidden_act="gelu",
        nsa=NSAConfig(
            compress_block=16,
            compress_stride=8,
            select_block=16,
            num_selected=4,
            window=65,
            compressor="mlp",
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
            branch_kv="shared",
        ),
    ),
    small={
        "intermediate_size": 512,
        "nsa": {"compress_block": 8, "compress_stride": 4, "select_block": 8, "num_selected": 2,
                "window": 33},
    },
)  # fmt: skip

_INFLLM_V2 = Preset(
    name="infllm-v2",
    summary="InfLLM-v2, the attention of MiniCPM4, at MiniCPM4-8B's sizes: one softmax over the "
    "selected and the nearest blocks, dense below 8,192 tokens. MiniCPM's own scaling of "
    "embedding, residuals and head is not in it, nor its RoPE factors.",
    config=ModelConfig(
        vocab_size=73_448,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=2,
        head_dim=128,
        intermediate_size=16_384,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        nsa=NSAConfig(
            num_selected=96,
            window=2048,
            compressor="mean",
            intra_block_positions="none",
            importance="max_pool",
            init_blocks=1,
            local_blocks=33,
            gate="none",
            fixed_gates=(0.0, 1.0, 0.0),
            branch_kv="shared",
            dense_len=8192,
        ),
    ),
    small={"nsa": {**_SMALL_LENGTHS, "num_selected": 6, "local_blocks": 3, "dense_len": 64}},
)

_NSA_VIBE = Preset(
    name="nsa-vibe",
    summary="nsa-117m-byte of nsa-vibe: K/V of its own for each branch, softmax gates from the "
    "mean query of a group.",
    config=ModelConfig(
        vocab_size=256,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=3072,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_interleaved=True,
        mlp="plain",
        nsa=NSAConfig(
            compressor="mean",
            intra_block_positions="none",
            gate="softmax",
            gate_scope="group",
            gate_input="query_mean",
            gate_hidden=32,
            gate_bias=True,
        ),
    ),
    small={"num_heads": 6, "intermediate_size": 512, "nsa": {**_SMALL_LENGTHS, "gate_hidden": 8}},
)

_DEVIN = Preset(
    name="devin",
    summary="nsa-by-devin, made causal: learned positions, LayerNorm, plain GELU MLP, one φ for "
    "keys and values, biased softmax gates. Its own attention sees the future; its head's bias is "
    "left out.",
    config=ModelConfig(
        vocab_size=10,
        hidden_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=1024,
        max_position_embeddings=1024,
        norm="layer",
        positions="learned",
        mlp="plain",
        mlp_bias=True,
        hidden_act="gelu",
        attention_bias=True,
        attention_output_bias=True,
        nsa=NSAConfig(
            compress_block=64,
            compress_stride=32,
            num_selected=8,
            window=256,
            compressor="mlp",
            compressor_tied=True,
            compressor_hidden=256,
            compressor_act="gelu",
            init_blocks=0,
            local_blocks=1,
            gate="softmax",
            gate_scope="shared",
            gate_bias=True,
            branch_kv="shared",
        ),
    ),
    small={
        "intermediate_size": 512,
        "num_kv_heads": 8,
        "nsa": {**_SMALL_LENGTHS, "compressor_hidden": 64},
    },
)

_EDIFICE = Preset(
    name="edifice",
    summary="NSA of the Elixir library Edifice, made causal: means as φ, three learned numbers as "
    "gates, LayerNorm, no positions. Its own pools queries, has no mask in one branch and does "
    "not use its top-k. It has no vocabulary; bytes are a choice.",
    config=ModelConfig(
        vocab_size=256,
        hidden_size=256,
        num_layers=4,
        num_heads=8,
        num_kv_heads=8,
        head_dim=32,
        intermediate_size=1024,
        max_position_embeddings=1024,
        norm="layer",
        rms_norm_eps=1e-6,
        positions="none",
        mlp="plain",
        mlp_bias=True,
        hidden_act="gelu",
        attention_bias=True,
        attention_output_bias=True,
        nsa=NSAConfig(
            compress_block=4,
            compress_stride=4,
            select_block=16,
            num_selected=8,
            window=64,
            compressor="mean",
            intra_block_positions="none",
            init_blocks=0,
            local_blocks=1,
            gate="softmax",
            gate_scope="shared",
            gate_input="constant",
            branch_kv="shared",
        ),
    ),
    small={
        "num_kv_heads": 8,
        "intermediate_size": 512,
        "nsa": {**_SMALL_LENGTHS, "compress_block": 4},
    },
    recommended_defaults=TrainingDefaults(dropout=0.1),
)

PRESETS = {
    preset.name: preset
    for preset in (
        _PAPER, _FLA, _NSA_1B, _XUNHAO, _FSA, _LUCIDRAINS, _INFLLM_V2, _NSA_VIBE, _DEVIN, _EDIFICE,
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Raises ConfigError, which lists those there are, if there is none of that name."""
    preset = PRESETS.get(name)
    if preset is None:
        known = ", ".join(PRESETS)
        raise ConfigError(f"preset {name!r} is not known, expected one of: {known}")
    return preset
