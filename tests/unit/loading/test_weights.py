"""Weights reach the decoder unchanged, and only if all of them fit."""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import load_decoder, load_tensors
from nsa_serve.model.loading.write import write_json
from tests.support.model_folders import TINY, edit_json, write_tiny_folder

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "tiny")


def _stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _store(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def _dense(folder: Path) -> ModelConfig:
    return load_decoder(resolve_model(str(folder)), attention="dense").config


def test_every_tensor_is_loaded_as_it_is_stored(folder: Path) -> None:
    state = load_decoder(resolve_model(str(folder))).state_dict()
    stored = _stored(folder)
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)


def test_every_parameter_gets_the_dtype_and_no_gradient(folder: Path) -> None:
    decoder = load_decoder(resolve_model(str(folder)), dtype=torch.bfloat16)
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in decoder.parameters())
    assert not decoder.training


def test_nothing_is_left_on_the_meta_device(folder: Path) -> None:
    decoder = load_decoder(resolve_model(str(folder)))
    rotation = decoder.rope.at(torch.arange(3))
    devices = {t.device.type for t in [*decoder.parameters(), *decoder.buffers(), rotation.cos]}
    assert devices == {"cpu"}


def test_dense_attention_leaves_out_the_nsa_tensors_only(folder: Path) -> None:
    decoder = load_decoder(resolve_model(str(folder)), attention="dense")
    left_out = _stored(folder).keys() - decoder.state_dict().keys()
    assert left_out
    assert all(".self_attn.nsa." in name for name in left_out)
    assert set(decoder.config.kinds) == {"dense"}


def test_nsa_attention_needs_an_nsa_section(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path, msgspec.structs.replace(TINY, nsa=None))
    with pytest.raises(ConfigError, match="no nsa section"):
        load_decoder(resolve_model(str(folder)), attention="nsa")


def test_a_head_stored_beside_tied_embeddings_is_ignored(folder: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert load_decoder(resolve_model(str(folder))).lm_head is None


def test_shards_load_like_one_file(folder: Path) -> None:
    whole = _stored(folder)
    names = sorted(whole)
    save_file({n: whole[n] for n in names[::2]}, folder / "a.safetensors")
    save_file({n: whole[n] for n in names[1::2]}, folder / "b.safetensors")
    (folder / "model.safetensors").unlink()
    places = {n: "ab"[i % 2] + ".safetensors" for i, n in enumerate(names)}
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    loaded = dict(load_tensors(folder, names))
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], whole[name]) for name in names)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    _store(folder, {n: t for n, t in _stored(folder).items() if n != NAME})
    with pytest.raises(ModelLoadError, match=f"no tensor {NAME}$"):
        _dense(folder)


def test_a_few_of_many_missing_tensors_are_named(folder: Path) -> None:
    _store(folder, {n: t for n, t in _stored(folder).items() if ".mlp." not in n})
    with pytest.raises(ModelLoadError, match=r"gate_proj\.weight, .* and 3 more$"):
        _dense(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    _store(folder, {**_stored(folder), "model.extra.weight": torch.zeros(2)})
    with pytest.raises(ModelLoadError, match=r"no place for tensor model\.extra\.weight$"):
        _dense(folder)


def test_a_wrong_shape_is_shown_with_the_right_one(folder: Path) -> None:
    _store(folder, {**_stored(folder), NAME: torch.zeros(24, 15)})
    with pytest.raises(ModelLoadError, match=rf"{NAME} has shape \[24, 15\], expected \[24, 16\]"):
        _dense(folder)


@pytest.mark.parametrize(
    "changes", [{"num_layers": 10**9}, {"intermediate_size": 2**62}, {"vocab_size": 2**50}]
)
def test_sizes_beyond_reason_are_refused_at_once(folder: Path, changes: dict[str, int]) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=str(folder)):
        _dense(folder)
