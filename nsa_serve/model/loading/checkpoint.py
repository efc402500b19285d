"""Checkpoints that can be converted: a folder of safetensors, a saved state dict, a GGUF file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading import gguf_llama, gguf_tokenizer
from nsa_serve.model.loading.families import LLAMA, family_of
from nsa_serve.model.loading.family import Family
from nsa_serve.model.loading.folder import eos_token_ids
from nsa_serve.model.loading.generation import read_generation
from nsa_serve.model.loading.gguf import GGUFFile
from nsa_serve.model.loading.json_file import read_json
from nsa_serve.model.loading.pickled import read_pickled
from nsa_serve.model.loading.recipes import Recipe
from nsa_serve.model.loading.tensor_files import (
    FLOAT_TYPES,
    PICKLED_SUFFIXES,
    has_tensors,
    list_tensors,
    pickled_files,
)
from nsa_serve.model.loading.weights import load_recipes, plan_tensors
from nsa_serve.model.loading.write import write_json
from nsa_serve.model.loading.write_tensors import TYPES

Infos = dict[str, tuple[str, tuple[int, ...]]]
"""By name, a tensor's type as safetensors names it, and its shape."""
_NAMES = {kind: name for name, kind in TYPES.items()}
_GGUF_TYPES = {"F32": "F32", "BF16": "BF16"}
"""GGUF's types that are kept; the others are F16 or have fewer bits, and become F16."""
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that was checked, none of whose data was read yet."""

    where: Path
    family: Family
    config: ModelConfig
    generation: dict[str, Any]
    """The content of generation_config.json."""
    infos: Infos
    """What its tensors are called and are in our own format."""
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Those tensors, in any order."""
    write_tokenizer: Callable[[Path], None]
    """Write its tokenizer's files into a folder; none if it has none."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises `ModelLoadError` with names for tensors that are missing, unknown or misshapen."""
    if not path.exists():
        raise ModelLoadError(f"{path} does not exist")
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path)
    if path.suffix in PICKLED_SUFFIXES and path.is_file():
        return _open_pickled(path.parent, [path])
    if not path.is_dir():
        suffixes = ", ".join(PICKLED_SUFFIXES)
        raise ModelLoadError(
            f"{path} is no checkpoint: that is a folder with a config.json, a .gguf file, or a "
            f"state dict ({suffixes}) beside a config.json"
        )
    if has_tensors(path):
        return _open_safetensors(path)
    if files := pickled_files(path):
        return _open_pickled(path, files)
    list_tensors(path)  # says what is missing
    raise AssertionError


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a folder's tokenizer files, as far as it has any."""
    for name in _TEXT_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def _open_safetensors(folder: Path) -> Checkpoint:
    stored = list_tensors(folder)
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}
    return _of_folder(folder, infos, lambda recipes: load_recipes(folder, recipes))


def _open_pickled(folder: Path, files: list[Path]) -> Checkpoint:
    fields = read_json(folder / "config.json", dict[str, Any])
    family = family_of(folder / "config.json", fields)
    if not family.pickled:
        raise ModelLoadError(
            f"{folder}: {files[0].name} is not read: models of {family.name} come as safetensors"
        )
    state = {name: tensor for file in files for name, tensor in read_pickled(file).items()}
    for name, tensor in state.items():
        if tensor.dtype not in _NAMES:
            expected = ", ".join(FLOAT_TYPES)
            raise ModelLoadError(f"{folder}: {name} is {tensor.dtype}, expected one of {expected}")
    infos = {name: (_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}

    def make(recipes: dict[str, Recipe]) -> Iterator[tuple[str, Tensor]]:
        for target, recipe in recipes.items():
            yield target, recipe(*(state[name] for name in recipe.sources))

    return _of_folder(folder, infos, make)


def _of_folder(
    folder: Path,
    stored: Infos,
    make: Callable[[dict[str, Recipe]], Iterator[tuple[str, Tensor]]],
) -> Checkpoint:
    fields = read_json(folder / "config.json", dict[str, Any])
    family = family_of(folder / "config.json", fields)
    shapes = {name: shape for name, (_, shape) in stored.items()}
    config = family.read_config(folder / "config.json", fields, shapes)
    recipes = plan_tensors(folder, family, shapes, config, config)
    infos: Infos = {}
    for target, recipe in recipes.items():
        parts = [torch.empty(shapes[name], device="meta") for name in recipe.sources]
        infos[target] = stored[recipe.sources[0]][0], tuple(recipe(*parts).shape)
    return Checkpoint(
        where=folder,
        family=family,
        config=config,
        generation=_generation(folder, fields),
        infos=infos,
        tensors=lambda: make(recipes),
        write_tokenizer=lambda target: copy_tokenizer(folder, target),
    )


def _generation(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """What the file says, with the end tokens that config.json names."""
    path = folder / "generation_config.json"
    own = read_json(path, dict[str, Any]) if path.exists() else {}
    ends = read_generation(folder, eos_token_ids(folder, fields)).eos_token_ids
    return own | ({"eos_token_id": list(ends)} if ends else {})


def _open_gguf(path: Path) -> Checkpoint:
    file = GGUFFile(path)
    config = gguf_llama.read_config(file)
    stored = gguf_llama.list_tensors(file)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    plan_tensors(path, LLAMA, shapes, config, config)
    kinds = {name: _GGUF_TYPES.get(tensor.kind.name, "F16") for name, tensor in stored.items()}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}

    def write_tokenizer(target: Path) -> None:
        gguf_tokenizer.read_tokenizer(file).save(str(target / "tokenizer.json"))
        fields = gguf_tokenizer.read_tokenizer_config(file)
        write_json(target / "tokenizer_config.json", fields)

    return Checkpoint(
        where=path,
        family=LLAMA,
        config=config,
        generation={f"{name}_token_id": i for name, i in ids.items() if i is not None},
        infos={name: (kinds[name], shape) for name, shape in shapes.items()},
        tensors=lambda: _gguf_tensors(file, config, kinds),
        write_tokenizer=write_tokenizer,
    )


def _gguf_tensors(
    file: GGUFFile, config: ModelConfig, kinds: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    for name, weight in gguf_llama.read_tensors(file, config):
        tensor = torch.from_numpy(np.array(weight)).to(TYPES[kinds[name]])
        if not tensor.isfinite().all():
            raise ModelLoadError(f"{file.path}: {name} holds numbers that are not finite")
        yield name, tensor
