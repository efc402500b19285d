"""A model folder, checked before anything is loaded: its files, and that they agree. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.built_in import ensure_built_in
from nsa_serve.model.loading.families import OURS, family_of
from nsa_serve.model.loading.family import Family
from nsa_serve.model.loading.generation import GenerationDefaults, read_generation
from nsa_serve.model.loading.json_file import convert, read_json
from nsa_serve.model.loading.progress import Progress, show_on_stderr
from nsa_serve.model.loading.recipes import Shapes
from nsa_serve.model.loading.tensor_files import has_tensors, list_tensors
from nsa_serve.text.vocabulary import BYTES, Vocabulary, read_vocabulary

__all__ = ["GenerationDefaults", "ModelFolder", "read_config", "resolve_model"]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose files are there, can be read and do not contradict each other."""

    path: Path
    name: str
    config: ModelConfig
    generation: GenerationDefaults
    family: Family = OURS
    has_tokenizer: bool = True
    """Whether it brings one; if not, its tokens are the 256 bytes."""


def resolve_model(model: str | None, *, progress: Progress = show_on_stderr) -> ModelFolder:
    """The checked folder of a model; None is the built-in one, fetched when it is first used.

    Raises `ModelLoadError`, one line that names the file and the cause, and `OfflineError` if the
    built-in model must be fetched and cannot be.
    """
    if model is None:
        return _resolve_built_in(progress)
    path = Path(model).expanduser()
    if not path.exists():
        raise not_there(model)
    if not path.is_dir():
        raise ModelLoadError(
            f"{model} is a file; a model is a folder with a config.json, "
            "which `nsa-serve convert` makes of a GGUF file"
        )
    return check_folder(path.resolve())


def not_there(model: str) -> ModelLoadError:
    """That a model's folder does not exist, and why it may have been thought to."""
    named = re.fullmatch(r"[\w-]+/[\w.-]+", model, re.ASCII)  # as in a hub: owner/name
    hint = ": a model is a folder, none is fetched by its name" if named else ""
    return ModelLoadError(f"model folder {model} does not exist{hint}")


def read_config(path: Path) -> ModelConfig:
    """What the config.json at `path`, or in the folder there, says; whichever family it is of.

    Raises `ModelLoadError`.
    """
    if not path.exists():
        raise not_there(str(path))
    path = path if path.is_file() else path / "config.json"
    fields = read_json(path, dict[str, Any])
    folder = path.parent
    shapes = shapes_of(folder) if path.name == "config.json" and has_tensors(folder) else {}
    return family_of(path, fields).read_config(path, fields, shapes)


def _resolve_built_in(progress: Progress) -> ModelFolder:
    path = ensure_built_in(progress)
    try:
        return check_folder(path)
    except ModelLoadError as error:
        raise ModelLoadError(f"{error}; remove {path} to have it made again") from None


def check_folder(path: Path) -> ModelFolder:
    """The checked folder at a path. Raises `ModelLoadError`."""
    fields = read_json(path / "config.json", dict[str, Any])
    family = family_of(path / "config.json", fields)
    config = family.read_config(path / "config.json", fields, shapes_of(path))
    vocabulary = read_vocabulary(path) if has_tokenizer(path, config) else BYTES
    generation = read_generation(path, eos_token_ids(path, fields), vocabulary.eos_token_id)
    check_token_ids(path, config, vocabulary, generation)
    return ModelFolder(path, path.name, config, generation, family, vocabulary is not BYTES)


def shapes_of(folder: Path) -> Shapes:
    """What tensors a folder holds."""
    return {name: tensor.shape for name, tensor in list_tensors(folder).items()}


def has_tokenizer(folder: Path, config: ModelConfig) -> bool:
    """Whether the folder must bring a tokenizer, or does: tokens that are bytes need none."""
    return config.vocab_size != BYTES.size or (folder / "tokenizer.json").exists()


def eos_token_ids(path: Path, fields: dict[str, Any]) -> list[int]:
    """The end tokens that a config.json names."""
    ids = fields.get("eos_token_id")
    ids = [ids] if isinstance(ids, int) else ids
    return convert(path / "config.json", {"eos": ids or []}, dict[str, list[int]])["eos"]


def check_token_ids(
    path: Path, config: ModelConfig, vocabulary: Vocabulary, generation: GenerationDefaults
) -> None:
    """Raise `ModelLoadError` for tokens outside the model's vocabulary."""
    if vocabulary.size > config.vocab_size:
        raise ModelLoadError(
            f"{path}: the tokenizer has {vocabulary.size} tokens, "
            f"the model a vocabulary of {config.vocab_size}"
        )
    for token_id in generation.eos_token_ids:
        if not 0 <= token_id < config.vocab_size:
            raise ModelLoadError(
                f"{path}: end token {token_id} is outside the vocabulary of {config.vocab_size}"
            )
