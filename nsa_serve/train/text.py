"""The text task: windows of text files, byte by byte or over a tokenizer."""

import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.write import write_json
from nsa_serve.text.tokenizer import Tokenizer
from nsa_serve.train.settings import TrainSettings
from nsa_serve.train.task import generator_of

_BATCHES = 3
"""What random numbers are drawn for."""
_VALIDATION_SHARE = 0.05
_MAX_VALIDATION = 8
"""Batches."""
_PIECE = 1 << 20
"""Characters that are encoded at once."""
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
_END = "<|endoftext|>"


class Text:
    """Windows drawn from the files, one after the other; the end of them is for validation."""

    epoch: int | None = None

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        tokens = torch.cat([_read(Path(path), settings.tokenizer) for path in settings.data])
        self.digest = hashlib.sha256(tokens.numpy().data).hexdigest()
        self._width = settings.sequence_length + 1
        if len(tokens) < 2 * self._width:
            raise ConfigError(
                f"the data has {len(tokens)} tokens, too few for sequences of "
                f"{settings.sequence_length}: there must be {2 * self._width}"
            )
        num_validation = max(int(len(tokens) * _VALIDATION_SHARE), self._width)
        self._train, self._held_out = tokens[:-num_validation], tokens[-num_validation:]

    def batch(self, step: int) -> Tensor:
        """[batch, sequence_length + 1]"""
        generator = generator_of(self._settings.seed, _BATCHES, step)
        last = len(self._train) - self._width
        starts = torch.randint(last + 1, (self._settings.batch_size,), generator=generator)
        return self._train[starts[:, None] + torch.arange(self._width)].long()

    def validation(self) -> list[Tensor]:
        """The held-out end of the text, window by window."""
        count = len(self._held_out) // self._width
        windows = self._held_out[: count * self._width].view(count, self._width).long()
        return list(windows.split(self._settings.batch_size)[:_MAX_VALIDATION])

    def write_tokenizer(self, folder: Path) -> None:
        """That of the settings, or the one of bytes, without a chat template."""
        if self._settings.tokenizer is not None:
            for name in _COPIED:
                source = Path(self._settings.tokenizer).expanduser() / name
                if source.exists():
                    shutil.copyfile(source, folder / name)
            return
        Tokenizer.byte_level().save(folder / "tokenizer.json")
        write_json(folder / "tokenizer_config.json", {"eos_token": _END})
        write_json(folder / "generation_config.json", {"eos_token_id": 256})


def text_tokenizer(folder: str | None) -> Tokenizer:
    """Of a folder; None is one token a byte."""
    if folder is None:
        return Tokenizer.byte_level()
    return Tokenizer.from_folder(Path(folder).expanduser())


def _read(path: Path, tokenizer: str | None) -> Tensor:
    """Token ids of a file, in the smallest type that holds them."""
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if not content:
        raise ConfigError(f"{path} is empty")
    if tokenizer is None:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text, at byte {error.start}") from None
    encoder = text_tokenizer(tokenizer)
    ids = [i for at in range(0, len(text), _PIECE) for i in encoder.encode(text[at : at + _PIECE])]
    if not ids:
        raise ModelLoadError(f"{path}: the tokenizer makes nothing of it")
    return torch.tensor(ids, dtype=torch.int32)
