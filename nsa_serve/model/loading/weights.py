"""Weights from safetensors files into a decoder: names and shapes first, then the data, once."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.decoder import Decoder, expected_tensors
from nsa_serve.model.loading.folder import ModelFolder
from nsa_serve.model.loading.json_file import one_line
from nsa_serve.model.loading.tensor_files import TensorInfo, list_tensors
from nsa_serve.model.rope import Rope

Attention = Literal["auto", "nsa", "dense"]

_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tables that old checkpoints carry along."""
_NSA = re.compile(r"model\.layers\.\d+\.self_attn\.nsa\..*")
_NUM_NAMED = 3
"""Tensors that an error names before it only counts."""


def load_decoder(
    folder: ModelFolder,
    *,
    attention: Attention = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Decoder:
    """The model of a folder, in evaluation mode, every parameter of `dtype` on `device`; None
    leaves each as it is stored, on a CPU mapped from the file.

    Raises `ModelLoadError` if the folder's tensors are not those that its config.json asks for,
    before any data is read.
    """
    config = attention_config(folder.config, attention)
    names = _check_tensors(folder.path, list_tensors(folder.path), config)
    with torch.device("meta"):
        decoder = Decoder(config)
    weights = load_tensors(folder.path, names, device=device)
    state = {name: weight if dtype is None else weight.to(dtype) for name, weight in weights}
    decoder.load_state_dict(state, strict=True, assign=True)
    decoder.rope = Rope(config, torch.device(device))
    return decoder.requires_grad_(False).eval()


def attention_config(config: ModelConfig, attention: Attention) -> ModelConfig:
    """The configuration with the attention that was asked for; `auto` is the model's own."""
    if attention == "nsa" and config.nsa is None:
        raise ConfigError("attention nsa: this model's config.json has no nsa section")
    if attention == "dense":
        return msgspec.structs.replace(config, nsa=None, layer_kinds=())
    return config


def load_tensors(
    folder: Path, names: Iterable[str], *, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, file by file, as they are stored; on a CPU they are mapped, not read."""
    tensors = list_tensors(folder)
    wanted = list(names)
    if missing := [name for name in wanted if name not in tensors]:
        raise ModelLoadError(f"{folder}: no tensor {_some(missing)}")
    by_file = sorted(wanted, key=lambda name: str(tensors[name].file))
    for path, group in groupby(by_file, key=lambda name: tensors[name].file):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in group:
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path}: {one_line(error)}") from None


def _check_tensors(folder: Path, found: dict[str, TensorInfo], config: ModelConfig) -> list[str]:
    """The names to load; everything else in the folder must be known to be of no use."""
    expected = _expected_tensors(folder, found, config)
    if missing := [name for name in expected if name not in found]:
        raise ModelLoadError(f"{folder}: no tensor {_some(missing)}")
    unexpected = [name for name in found if name not in expected and not _unused(name, config)]
    if unexpected:
        raise ModelLoadError(f"{folder}: config.json has no place for tensor {_some(unexpected)}")
    for name, shape in expected.items():
        if found[name].shape != tuple(shape):
            raise ModelLoadError(
                f"{folder}: {name} has shape {list(found[name].shape)}, expected {list(shape)}"
            )
    return list(expected)


def _expected_tensors(
    folder: Path, found: dict[str, TensorInfo], config: ModelConfig
) -> dict[str, torch.Size]:
    # A damaged config.json can ask for a billion layers: look for the last before building any.
    last = f"model.layers.{config.num_layers - 1}.input_layernorm.weight"
    if last not in found:
        raise ModelLoadError(f"{folder}: no tensor {last}")
    try:
        return expected_tensors(config)
    except RuntimeError as error:
        raise ModelLoadError(f"{folder}: no such model can be built: {one_line(error)}") from None


def _unused(name: str, config: ModelConfig) -> bool:
    return (
        _DERIVED.fullmatch(name) is not None
        or (config.tie_word_embeddings and name == "lm_head.weight")
        or (config.nsa is None and _NSA.fullmatch(name) is not None)
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
