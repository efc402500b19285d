"""nsa-vibe (nsa-117m-byte): K/V of their own for each branch, gates from the group's mean query.

The training code saves a state dict and its configuration, in sections `model` and `nsa` or flat.
"""

from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.family import Family, Fields
from nsa_serve.model.loading.json_file import convert
from nsa_serve.model.loading.recipes import Names, Recipe, Shapes, renamed

NAMES = Names(
    {
        "model.embed_tokens": "embed",
        "model.norm": "norm_f",
        "lm_head": "lm_head",
        "model.layers.*.input_layernorm": "blocks.*.norm1",
        "model.layers.*.post_attention_layernorm": "blocks.*.norm2",
        "model.layers.*.mlp.up_proj": "blocks.*.mlp.fc1",
        "model.layers.*.mlp.down_proj": "blocks.*.mlp.fc2",
        **{
            f"model.layers.*.self_attn.{target}": f"blocks.*.attn.{source}"
            for target, source in {
                "q_proj": "W_Q",
                "k_proj": "W_K_sel",
                "v_proj": "W_V_sel",
                "nsa.k_window": "W_K_win",
                "nsa.v_window": "W_V_win",
                "nsa.k_phi": "W_K_cmp",
                "nsa.v_phi": "W_V_cmp",
                "nsa.gates.hidden": "gate.fc1",
                "nsa.gates.out": "gate.fc2",
                "o_proj": "out",
            }.items()
        },
    }
)
_SECTIONS = ("model", "nsa")


class _Config(msgspec.Struct, kw_only=True):
    """Fields that change what is computed; the defaults are those of the training code."""

    vocab_size: int = 256
    dim: int
    n_layers: int
    n_heads: int
    n_kv_groups: int
    d_k: int
    d_v: int
    l: int = 32  # noqa: E741
    d: int = 16
    l_sel: int = 64
    n_sel: int = 16
    w: int = 512
    phi: str = "avg"
    gate_hidden: int | None = None
    gate_temp: float = 1.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 65_536
    """The model itself knows no limit."""


def read_config(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    """The configuration; raises `ModelLoadError` for variants that are not served."""
    for name in _SECTIONS:
        if name in fields and not isinstance(fields[name], dict):
            raise ModelLoadError(f"{path}: Expected `object` - at `$.{name}`")
    vibe = convert(path, _flat(fields), _Config)
    if vibe.d_v < 1:
        raise ModelLoadError(f"{path}: d_v must be at least 1")
    if vibe.phi != "avg" or vibe.gate_temp != 1.0:
        raise ModelLoadError(f"{path}: phi must be avg and gate_temp 1.0, nothing else is read")
    try:
        return ModelConfig(
            vocab_size=vibe.vocab_size,
            hidden_size=vibe.dim,
            num_layers=vibe.n_layers,
            num_heads=vibe.n_heads,
            num_kv_heads=vibe.n_kv_groups,
            head_dim=vibe.d_k,
            v_head_dim=0 if vibe.d_v == vibe.d_k else vibe.d_v,
            intermediate_size=_stored(shapes, "blocks.0.mlp.fc1.weight", 4 * vibe.dim),
            max_position_embeddings=vibe.max_position_embeddings,
            rms_norm_eps=1e-6,
            rope_interleaved=True,
            tie_word_embeddings=vibe.tie_word_embeddings,
            mlp="plain",
            nsa=NSAConfig(
                compress_block=vibe.l,
                compress_stride=vibe.d,
                select_block=vibe.l_sel,
                num_selected=vibe.n_sel,
                window=vibe.w,
                compressor="mean",
                intra_block_positions="none",
                gate="softmax",
                gate_scope="group",
                gate_input="query_mean",
                gate_hidden=vibe.gate_hidden
                or _stored(shapes, "blocks.0.attn.gate.fc1.weight", max(1, vibe.d_k // 2)),
                gate_bias=True,
                branch_kv="independent",
            ),
        )
    except ConfigError as error:
        raise ModelLoadError(f"{path}: {error}") from None


def _flat(fields: Fields) -> dict[str, Any]:
    sections = [fields[name] for name in _SECTIONS if isinstance(fields.get(name), dict)]
    return {key: value for part in (fields, *sections) for key, value in part.items()}


def _stored(shapes: Shapes, name: str, default: int) -> int:
    """Rows of a matrix, or what the training code makes them."""
    return shapes.get(name, (default,))[0]


def _source(target: str, config: ModelConfig) -> Recipe:
    name = NAMES[target]
    assert name is not None, target
    return renamed(name)


def _fits(fields: Fields) -> bool:
    return fields.get("model_type") in (None, "nsa") and "n_kv_groups" in _flat(fields)


NSA_VIBE = Family(
    name="nsa-vibe", read_config=read_config, fits=_fits, source=_source, pickled=True
)
