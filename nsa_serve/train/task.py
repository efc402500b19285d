"""What a task gives: batches that depend on seed and step alone, so that a resumed run sees what
the first would have seen."""

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nsa_serve.errors import ConfigError
from nsa_serve.train.settings import TaskName, TrainSettings


class Task(Protocol):
    """Batches of token ids, [batch, time + 1]: each token but the last predicts the next."""

    epoch: int | None
    """Steps after which every training sequence was seen; None where they are drawn."""
    digest: str
    """Of the data: another one cannot go on with the run."""

    def batch(self, step: int) -> Tensor:
        """Of a step, counted from 0: int64 on the CPU."""

    def validation(self) -> list[Tensor]:
        """Batches that no step sees; empty where there is too little data."""

    def write_tokenizer(self, folder: Path) -> None:
        """Write what a served model needs beside its weights."""


def vocab_size_of(task: TaskName, tokenizer: str | None) -> int:
    """Of the model that learns it."""
    from nsa_serve.train.sequences import NUM_DIGITS
    from nsa_serve.train.text import text_tokenizer

    return NUM_DIGITS if task == "sequence" else text_tokenizer(tokenizer).vocab_size


def make_task(settings: TrainSettings) -> Task:
    """Raises ConfigError if the data cannot be read, is too short or does not fit the model."""
    from nsa_serve.train.sequences import Sequences
    from nsa_serve.train.text import Text

    needed = vocab_size_of(settings.task, settings.tokenizer)
    if needed > settings.model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {needed} tokens, the model a vocabulary of "
            f"{settings.model.vocab_size}"
        )
    return Sequences(settings) if settings.task == "sequence" else Text(settings)


def generator_of(seed: int, *place: int) -> torch.Generator:
    """Random numbers of one place in a run, independent of all others."""
    mixed = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=7)
    return torch.Generator().manual_seed(int.from_bytes(mixed.digest()))
