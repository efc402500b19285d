"""Checkpoints that do not fit their config.json are refused by name, loaded or converted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.convert import convert_checkpoint
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import load_decoder
from nsa_serve.model.loading.write import write_json
from tests.support.model_folders import edit_json
from tests.support.originals import nsa_vibe
from tests.support.originals.every import WRITERS
from tests.support.originals.lucidrains import PHIS, SIZES, Original

A_TENSOR = {
    "ours": "model.layers.1.self_attn.q_proj.weight",
    "fla": "model.layers.1.attn.g_proj.weight",
    "llama_nsa": "model.layers.1.self_attn.g_proj.weight",
    "xunhao": "layers.1.nsa.compress_key",
    "fsa": "layers.1.nsa.gate.0.weight",
    "nsa_vibe": "blocks.1.attn.W_K_cmp.weight",
    "lucidrains": "layers.1.0.to_qkv.weight",
}


@pytest.fixture(params=WRITERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def _stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_missing_tensor_is_named(family: str, tmp_path: Path) -> None:
    WRITERS[family](tmp_path)
    state = _stored(tmp_path)
    del state[A_TENSOR[family]]
    save_file(state, tmp_path / "model.safetensors")
    _refused(tmp_path, f"no tensor {A_TENSOR[family]}")


def test_an_unknown_tensor_is_named(family: str, tmp_path: Path) -> None:
    WRITERS[family](tmp_path)
    save_file(_stored(tmp_path) | {"a.new.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    _refused(tmp_path, "config.json has no place for tensor a.new.weight")


def test_a_tensor_of_another_shape_is_named(family: str, tmp_path: Path) -> None:
    WRITERS[family](tmp_path)
    state = _stored(tmp_path)
    state[A_TENSOR[family]] = state[A_TENSOR[family]][:-1].clone()
    save_file(state, tmp_path / "model.safetensors")
    _refused(tmp_path, f"{A_TENSOR[family]} has shape {list(state[A_TENSOR[family]].shape)}")


def _refused(source: Path, cause: str) -> None:
    """By conversion and by loading, in one line, with nothing left behind."""
    target = source.parent / "target"
    for attempt in (
        lambda: convert_checkpoint(source, target, progress=lambda *_: None),
        lambda: load_decoder(resolve_model(str(source))),
    ):
        with pytest.raises(ModelLoadError) as caught:
            attempt()
        assert cause in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not target.exists()
    assert not list(source.parent.glob(".part-*"))


@pytest.mark.parametrize(
    ("family", "changes", "cause"),
    [
        ("ours", {"num_layers": 3}, "no tensor model.layers.2.input_layernorm.weight"),
        ("fla", {"num_kv_heads": 2}, "attn.k_proj.weight has shape [8, 32], expected [16, 32]"),
        ("fla", {"qkv_bias": False}, "no place for tensor model.layers.0.attn.k_proj.bias"),
        ("llama_nsa", {"num_hidden_layers": 1}, "no place for tensor model.layers.1."),
        ("llama_nsa", {"tie_word_embeddings": False}, "no tensor lm_head.weight"),
        ("xunhao", {"model_type": "fsa"}, "nsa.gate.0.weight has shape [12, 32], expected [3, 32]"),
        ("xunhao", {"compress_type": "avgpool"}, "no place for tensor layers.0.nsa.compress_key"),
        ("xunhao", {"kernel_stride": 5}, "nsa.compress_stride 5 must divide nsa.compress_block 16"),
        ("fsa", {"model_type": "xunhao"}, "nsa.gate.0.weight has shape [3, 32], expected [12, 32]"),
        ("nsa_vibe", {"model": nsa_vibe.MODEL | {"d_v": 6}}, "attn.W_V_sel.weight has shape"),
        ("nsa_vibe", {"nsa": 3}, "Expected `object` - at `$.nsa`"),
        ("lucidrains", {"kv_heads": 3}, "num_kv_heads 3 must divide num_heads 4"),
        ("lucidrains", {"ff_expansion_factor": 3.0}, "layers.0.1.1.weight has shape [64, 32]"),
    ],
)
def test_a_config_that_contradicts_itself_or_the_tensors_names_where(
    family: str, changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    WRITERS[family](tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    _refused(tmp_path, cause)


def test_a_contradictory_compressor_is_named(tmp_path: Path) -> None:
    original = Original(PHIS["conv"], **SIZES["overlapping"])
    original.write(tmp_path)
    attention = original.config["sparse_attn_kwargs"] | {"compress_mlp": "AttentionPool"}
    write_json(tmp_path / "config.json", original.config | {"sparse_attn_kwargs": attention})
    _refused(tmp_path, "compress_mlp is AttentionPool, the tensors are those of ConvLinearCompress")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"causal": False}, "use_sparse_attn and causal must be true"),
        ({"sparse_attn_kwargs": {"num_selected_blocks": 0}}, "num_selected_blocks must be at"),
        ({"sparse_attn_kwargs": {"query_heads_share_selected_kv": False}}, "selects together"),
        ({"sparse_attn_kwargs": {"compress_mlp": "Magic"}}, "'Magic' is none of MLP, Conv"),
        ({"sparse_attn_kwargs": {"compress_block_overlap_len": 0}}, "compress_block_overlap_len"),
    ],
)
def test_arguments_that_are_not_served_are_named(
    changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    original = Original(PHIS["default"], **SIZES["overlapping"])
    original.write(tmp_path)
    attention = original.config["sparse_attn_kwargs"] | changes.pop("sparse_attn_kwargs", {})
    config = original.config | changes | {"sparse_attn_kwargs": attention}
    write_json(tmp_path / "config.json", config)
    _refused(tmp_path, cause)
