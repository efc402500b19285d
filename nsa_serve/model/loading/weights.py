"""Weights from safetensors files into a decoder: names and shapes first, then the data, once."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.decoder import Decoder, expected_tensors
from nsa_serve.model.loading.family import Family
from nsa_serve.model.loading.folder import ModelFolder, shapes_of
from nsa_serve.model.loading.json_file import one_line
from nsa_serve.model.loading.recipes import Recipe, Shapes, renamed
from nsa_serve.model.loading.tensor_files import list_tensors
from nsa_serve.model.rope import Rope

Attention = Literal["auto", "nsa", "dense"]

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
    recipes = check_recipes(folder, config)
    with torch.device("meta"):
        decoder = Decoder(config)
    weights = load_recipes(folder.path, recipes, device=device)
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
    return load_recipes(folder, {name: renamed(name) for name in names}, device=device)


def load_recipes(
    folder: Path, recipes: Mapping[str, Recipe], *, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """What the recipes make of a folder's tensors, file by file, in the types that are stored."""
    tensors = list_tensors(folder)
    _require_all(folder, (n for recipe in recipes.values() for n in recipe.sources), tensors)
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for target in sorted(recipes, key=lambda name: str(tensors[recipes[name].sources[0]].file)):
            recipe = recipes[target]
            parts = [_read(tensors[n].file, n, opened, stack, device) for n in recipe.sources]
            yield target, recipe(*parts).contiguous()


def _read(
    path: Path, name: str, opened: dict[Path, Any], stack: ExitStack, device: torch.device | str
) -> Tensor:
    try:
        if path not in opened:
            opened[path] = stack.enter_context(safe_open(path, framework="pt", device=str(device)))
        tensor: Tensor = opened[path].get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path}: {one_line(error)}") from None
    return tensor


def check_recipes(folder: ModelFolder, config: ModelConfig) -> dict[str, Recipe]:
    """How each tensor of a decoder of `config` is made of the folder's; everything else in the
    folder must be known to be of no use. Raises `ModelLoadError` before any data is read."""
    return plan_tensors(folder.path, folder.family, shapes_of(folder.path), folder.config, config)


def plan_tensors(
    where: Path, family: Family, shapes: Shapes, stored: ModelConfig, wanted: ModelConfig
) -> dict[str, Recipe]:
    """Recipes for a decoder of configuration `wanted` from a checkpoint whose own is `stored`."""
    expected = _expected(where, family, shapes, wanted)
    recipes = {target: family.source(target, wanted) for target in expected}
    _require_all(where, [name for recipe in recipes.values() for name in recipe.sources], shapes)
    known = {name for recipe in recipes.values() for name in recipe.sources}
    if stored != wanted:
        for target in _expected(where, family, shapes, stored):
            known.update(family.source(target, stored).sources)
    if stored.tie_word_embeddings:
        known.update(family.source("lm_head.weight", stored).sources)
    if unexpected := [n for n in shapes if n not in known and not _unused(n, family, stored)]:
        raise ModelLoadError(f"{where}: config.json has no place for tensor {_some(unexpected)}")
    for target, shape in expected.items():
        _check_shape(where, recipes[target], shapes, tuple(shape))
    return recipes


def _require_all(where: Path, names: Iterable[str], found: Container[str]) -> None:
    if missing := [name for name in dict.fromkeys(names) if name not in found]:
        raise ModelLoadError(f"{where}: no tensor {_some(missing)}")


def _check_shape(where: Path, recipe: Recipe, shapes: Shapes, expected: tuple[int, ...]) -> None:
    parts = [torch.empty(shapes[name], device="meta") for name in recipe.sources]
    try:
        made = tuple(recipe(*parts).shape)
    except (RuntimeError, IndexError):
        made = None
    if made != expected:
        names = " and ".join(recipe.sources)
        found = " and ".join(str(list(shapes[name])) for name in recipe.sources)
        wanted = f"expected {'' if recipe.make is None else 'what gives '}{list(expected)}"
        raise ModelLoadError(f"{where}: {names} has shape {found}, {wanted}")


def _expected(
    where: Path, family: Family, shapes: Shapes, config: ModelConfig
) -> dict[str, torch.Size]:
    # A damaged config.json can ask for a billion layers: look for the last before building any.
    last = f"model.layers.{config.num_layers - 1}.input_layernorm.weight"
    _require_all(where, family.source(last, config).sources, shapes)
    try:
        return expected_tensors(config)
    except RuntimeError as error:
        raise ModelLoadError(f"{where}: no such model can be built: {one_line(error)}") from None


def _unused(name: str, family: Family, config: ModelConfig) -> bool:
    return family.ignored.fullmatch(name) is not None or (
        config.nsa is None and _NSA.fullmatch(name) is not None
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
