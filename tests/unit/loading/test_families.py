"""Which family a config.json is of, and what its defaults mean."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.families import FAMILIES, family_of
from nsa_serve.presets import find_preset

PATH = Path("config.json")
NSA_1B = {
    "model_type": "llama-nsa",
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "block_size": 16,
    "block_counts": 16,
    "window_size": 128,
}
XUNHAO = {"kernel_size": 32, "kernel_stride": 16, "topk": 16}
NSA_VIBE = {
    "model": {
        "dim": 768,
        "n_layers": 12,
        "n_heads": 12,
        "n_kv_groups": 2,
        "d_k": 64,
        "d_v": 64,
    },
    "nsa": {"l": 32, "d": 16, "l_sel": 64, "n_sel": 16, "w": 512},
}
LUCIDRAINS = {
    "num_tokens": 256,
    "dim": 512,
    "depth": 6,
    "heads": 8,
    "kv_heads": 4,
    "use_sparse_attn": True,
    "sparse_attn_kwargs": {
        "sliding_window_size": 64,
        "compress_block_size": 16,
        "compress_block_sliding_stride": 8,
        "selection_block_size": 16,
        "num_selected_blocks": 4,
    },
}


def _read(fields: dict[str, Any]) -> ModelConfig:
    return family_of(PATH, fields).read_config(PATH, fields, {})


def _comparable(config: ModelConfig) -> ModelConfig:
    """Without what a preset may say otherwise: a limit that the original does not have, an ε in
    fewer digits, and 0 for a width that is the default's."""
    nsa = config.nsa
    assert nsa is not None
    if nsa.compressor_hidden == nsa.compress_block * config.head_dim:
        nsa = msgspec.structs.replace(nsa, compressor_hidden=0)
    return msgspec.structs.replace(
        config,
        max_position_embeddings=1,
        rms_norm_eps=float(f"{config.rms_norm_eps:.7e}"),
        nsa=nsa,
    )


@pytest.mark.parametrize(
    ("preset", "family", "fields"),
    [
        ("fla", "nsa", {"model_type": "nsa"}),
        ("nsa-1b", "llama-nsa", NSA_1B),
        ("xunhao", "xunhao", XUNHAO),
        ("fsa", "fsa", {"model_type": "fsa", **XUNHAO}),
        ("nsa-vibe", "nsa-vibe", NSA_VIBE),
        ("lucidrains", "lucidrains", LUCIDRAINS),
    ],
)
def test_a_published_config_is_that_of_the_preset(
    preset: str, family: str, fields: dict[str, Any]
) -> None:
    assert family_of(PATH, fields).name == family
    assert _comparable(_read(fields)) == _comparable(find_preset(preset).config)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_found_by_its_name(family: Any) -> None:
    assert family_of(PATH, {"model_type": family.name}) is family


def test_an_unknown_family_names_those_there_are() -> None:
    with pytest.raises(ModelLoadError) as caught:
        family_of(PATH, {"model_type": "gpt2"})
    assert all(family.name in str(caught.value) for family in FAMILIES)


def test_flas_ratio_gives_the_width_of_its_mlp() -> None:
    """256 · ⌈⌊hidden · ratio · 2 / 3⌋ / 256⌉"""
    fields = {"model_type": "nsa", "hidden_size": 1000}
    assert _read({**fields, "hidden_ratio": 3}).intermediate_size == 2048
    assert _read({**fields, "hidden_ratio": 4}).intermediate_size == 2816
    assert _read({**fields, "intermediate_size": 77}).intermediate_size == 77


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"block_counts": 2}, "block_counts 2 leaves no place"),
        ({"block_counts": None}, "Expected `int`, got `null` - at `$.block_counts`"),
        ({"elementwise_affine": False}, "elementwise_affine"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is none of"),
    ],
)
def test_what_fla_models_are_not_served_is_named(fields: dict[str, Any], cause: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        _read({"model_type": "nsa", **fields})
    assert cause in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
