"""The sequence task: digits, each the sum of the two before it, mod 10.

A sequence is given by its first two digits. Half of the hundred pairs begin the training sequences;
the other half are held out, so that continuing one of those shows the rule and not a memory. Every
pair is somewhere within the training sequences, so every sum can be learned, but only half of them
at each position.
"""

from functools import cached_property
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models
from torch import Tensor

from nsa_serve.model.loading.write import write_json
from nsa_serve.train.settings import TrainSettings
from nsa_serve.train.task import generator_of

NUM_DIGITS = 10
NUM_SEQUENCES = 1000
_NUM_HELD_OUT = 50
_TRIES = 100
_SPLIT, _EPOCHS = 1, 2
"""What random numbers are drawn for."""


class Sequences:
    """A thousand sequences, twenty of each, in another order in every epoch."""

    def __init__(self, settings: TrainSettings) -> None:
        self._seed, self._size = settings.seed, settings.batch_size
        self._length = settings.sequence_length
        self.digest = ""
        self.epoch: int | None = -(-NUM_SEQUENCES // self._size)
        train, self._held_out = split_pairs(self._seed, self._length)
        self._pairs = train.repeat(NUM_SEQUENCES // len(train), 1)

    def batch(self, step: int) -> Tensor:
        """[batch, length]; the last of an epoch may be shorter."""
        assert self.epoch is not None
        epoch, place = divmod(step, self.epoch)
        order = torch.randperm(NUM_SEQUENCES, generator=generator_of(self._seed, _EPOCHS, epoch))
        own = order[place * self._size : (place + 1) * self._size]
        return continued(self._pairs[own], self._length)

    def validation(self) -> list[Tensor]:
        """The held-out sequences."""
        return [continued(self._held_out, self._length)]

    def write_tokenizer(self, folder: Path) -> None:
        """A token for each digit; all else in a prompt is passed over."""
        digits = {str(digit): digit for digit in range(NUM_DIGITS)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=digits, merges=[]))
        backend.decoder = decoders.Fuse()
        backend.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", {})
        write_json(folder / "generation_config.json", {"do_sample": False})

    @cached_property
    def held_out_texts(self) -> list[str]:
        """The held-out sequences as they are written."""
        rows = continued(self._held_out, self._length).tolist()
        return ["".join(map(str, row)) for row in rows]


def split_pairs(seed: int, length: int) -> tuple[Tensor, Tensor]:
    """Pairs of first digits to train on, and those held out: [N, 2] each. Sequences of `length`
    that begin with the first contain all pairs, if sequences so short can."""
    generator = generator_of(seed, _SPLIT)
    digits = torch.arange(NUM_DIGITS)
    pairs = torch.cartesian_prod(digits, digits)
    best, most = pairs, -1
    for _ in range(_TRIES):
        shuffled = pairs[torch.randperm(len(pairs), generator=generator)]
        rows = continued(shuffled[_NUM_HELD_OUT:], length)
        seen = (rows[:, :-2] * NUM_DIGITS + rows[:, 1:-1]).unique().numel()  # a sum each
        if seen > most:
            best, most = shuffled, seen
        if most == len(pairs):
            break
    return best[_NUM_HELD_OUT:], best[:_NUM_HELD_OUT]


def continued(pairs: Tensor, length: int) -> Tensor:
    """[N, 2] → [N, length]"""
    digits = list(pairs.unbind(1))
    while len(digits) < length:
        digits.append((digits[-1] + digits[-2]) % NUM_DIGITS)
    return torch.stack(digits[:length], 1)
