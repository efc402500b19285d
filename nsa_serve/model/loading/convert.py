"""From a checkpoint of any family to a model folder in our own format, whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path

from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.checkpoint import Checkpoint, copy_tokenizer, open_checkpoint
from nsa_serve.model.loading.folder import ModelFolder, check_folder, check_token_ids
from nsa_serve.model.loading.generation import read_generation
from nsa_serve.model.loading.progress import Progress
from nsa_serve.model.loading.write import write_config, write_json
from nsa_serve.model.loading.write_tensors import write_tensors
from nsa_serve.text.tokenizer import Tokenizer
from nsa_serve.text.vocabulary import BYTES, read_vocabulary

_KEPT = ("LICENSE*", "NOTICE*")


def convert_checkpoint(
    source: Path,
    target: Path,
    *,
    tokenizer: Path | None = None,
    force: bool = False,
    progress: Progress,
) -> tuple[str, ModelFolder]:
    """Write `target`, a folder that is not there yet unless `force`; the family that `source` is of
    and what came of it. `tokenizer` is a folder whose tokenizer takes the place of the source's.

    Nothing is left behind, and nothing that was there is lost, if it fails. Raises `ConfigError`.
    """
    source, target = source.expanduser().resolve(), target.expanduser().absolute()
    _check_target(source, target, force)
    checkpoint = open_checkpoint(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as work:
            made = Path(work, target.name)
            made.mkdir()
            _write_text(checkpoint, made, tokenizer)
            write_tensors(
                made / "model.safetensors",
                checkpoint.infos,
                checkpoint.tensors(),
                lambda fraction: progress(f"Converting {source.name}", fraction),
            )
            for path in made.iterdir():
                _flush(path)
            check_folder(made)
            _put(made, target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror})") from None
    return checkpoint.family.name, check_folder(target)


def _check_target(source: Path, target: Path, force: bool) -> None:
    if target.resolve() == source or target.resolve() in source.parents:
        raise ConfigError(f"{target} holds what is to be converted")
    if not target.exists():
        return
    if not force:
        raise ConfigError(f"{target} exists already; --force replaces it")
    if not target.is_dir():
        raise ConfigError(f"{target} is no folder")
    if any(target.iterdir()) and not (target / "config.json").exists():
        raise ConfigError(f"{target} is no model folder, so it is not replaced")


def _write_text(checkpoint: Checkpoint, made: Path, tokenizer: Path | None) -> None:
    """All but the weights; raises `ModelLoadError` if tokenizer and model do not agree."""
    write_config(made, checkpoint.config)
    write_json(made / "generation_config.json", checkpoint.generation)
    if tokenizer is not None:
        copy_tokenizer(tokenizer.expanduser(), made)
    else:
        checkpoint.write_tokenizer(made)
    if not (made / "tokenizer.json").exists():
        if tokenizer is not None or checkpoint.config.vocab_size != BYTES.size:
            raise ModelLoadError(
                f"{tokenizer or checkpoint.where} has no tokenizer.json; --tokenizer can name a "
                "folder that has one"
            )
        Tokenizer.bytes_only().save(made / "tokenizer.json")
        (made / "tokenizer_config.json").unlink(missing_ok=True)
    if checkpoint.where.is_dir():
        for path in (path for pattern in _KEPT for path in checkpoint.where.glob(pattern)):
            shutil.copyfile(path, made / path.name)
    try:
        vocabulary = read_vocabulary(made)
        generation = read_generation(made, vocabulary.eos_token_id)
        check_token_ids(made, checkpoint.config, vocabulary, generation)
        Tokenizer.from_folder(made)
    except ModelLoadError as error:
        named = str(error).replace(str(made), str(tokenizer or checkpoint.where))
        raise ModelLoadError(named) from None


def _put(made: Path, target: Path) -> None:
    """Move a folder to its place; what was there is gone only once it is."""
    if not target.exists():
        made.rename(target)
        return
    replaced = made.with_name(made.name + ".replaced")
    target.rename(replaced)
    try:
        made.rename(target)
    except OSError:
        replaced.rename(target)
        raise


def _flush(path: Path) -> None:
    """Without this a power cut after the rename could leave a folder of empty files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
