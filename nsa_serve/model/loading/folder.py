"""A model folder, checked before anything is loaded: its files, and that they agree. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.built_in import ensure_built_in
from nsa_serve.model.loading.generation import GenerationDefaults, read_generation
from nsa_serve.model.loading.json_file import convert, read_json
from nsa_serve.model.loading.llama import read_llama_config
from nsa_serve.model.loading.progress import Progress, show_on_stderr
from nsa_serve.model.loading.tensor_files import list_tensors
from nsa_serve.model.loading.write import OUR_MODEL_TYPE
from nsa_serve.text.vocabulary import Vocabulary, read_vocabulary

__all__ = ["GenerationDefaults", "ModelFolder", "read_config", "resolve_model"]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder whose files are there, can be read and do not contradict each other."""

    path: Path
    name: str
    config: ModelConfig
    generation: GenerationDefaults


def resolve_model(model: str | None, *, progress: Progress = show_on_stderr) -> ModelFolder:
    """The checked folder of a model; None is the built-in one, fetched when it is first used.

    Raises `ModelLoadError`, one line that names the file and the cause, and `OfflineError` if the
    built-in model must be fetched and cannot be.
    """
    if model is None:
        return _resolve_built_in(progress)
    path = Path(model).expanduser()
    if not path.exists():
        raise ModelLoadError(f"model folder {model} does not exist")
    if not path.is_dir():
        raise ModelLoadError(f"{model} is a file; a model is a folder with a config.json")
    return _check_folder(path.resolve())


def read_config(path: Path) -> ModelConfig:
    """What the config.json at `path`, or in the folder there, says; whichever family it is of."""
    return _read_config(path)[0]


def _resolve_built_in(progress: Progress) -> ModelFolder:
    path = ensure_built_in(progress)
    try:
        return _check_folder(path)
    except ModelLoadError as error:
        raise ModelLoadError(f"{error}; remove {path} to have it made again") from None


def _check_folder(path: Path) -> ModelFolder:
    config, fields = _read_config(path)
    vocabulary = read_vocabulary(path)
    generation = read_generation(path, _eos_token_ids(path, fields), vocabulary.eos_token_id)
    _check_token_ids(path, config, vocabulary, generation)
    list_tensors(path)
    return ModelFolder(path, path.name, config, generation)


def _read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    path = path if path.is_file() else path / "config.json"
    fields = read_json(path, dict[str, Any])
    model_type = fields.get("model_type")
    reader = _READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        known = ", ".join(_READERS)
        found = "is missing" if model_type is None else f"{model_type!r} is not known"
        raise ModelLoadError(f"{path}: model_type {found}, expected one of: {known}")
    return reader(path, fields), fields


def _read_our_config(path: Path, fields: dict[str, Any]) -> ModelConfig:
    return convert(path, {k: v for k, v in fields.items() if k != "model_type"}, ModelConfig)


_READERS: dict[str, Callable[[Path, dict[str, Any]], ModelConfig]] = {
    OUR_MODEL_TYPE: _read_our_config,
    "llama": read_llama_config,
}


def _eos_token_ids(path: Path, fields: dict[str, Any]) -> list[int]:
    ids = fields.get("eos_token_id")
    ids = [ids] if isinstance(ids, int) else ids
    return convert(path / "config.json", {"eos": ids or []}, dict[str, list[int]])["eos"]


def _check_token_ids(
    path: Path, config: ModelConfig, vocabulary: Vocabulary, generation: GenerationDefaults
) -> None:
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
