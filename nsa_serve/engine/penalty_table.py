"""Which tokens sequences already have, counted on the device."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsa_kernels.sample.params import IN_PROMPT
from nsa_serve.engine.sampler import SamplingState


@dataclass(slots=True)
class _Entry:
    state: SamplingState
    row: int
    counted: int
    """Tokens of its output that its row counts."""


class PenaltyTable:
    """A row of counts for every sequence with penalties that was sampled of late.

    A row follows its sequence by what was added to its output since; a sequence without one is
    counted anew, so rows may be taken from sequences that are not in a step at any time.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab, self._device = vocab_size, device
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._entries: dict[int, _Entry] = {}  # those used last come last

    @property
    def counts(self) -> Tensor:
        """[rows, vocab] int32, as `Penalties.counts`."""
        return self._counts

    def rows_of(
        self, states: list[SamplingState], outputs: SequenceOf[SequenceOf[int]]
    ) -> list[int]:
        """A row of `counts` for each sequence, up to date with its output once what is queued on
        the device has run."""
        entries = self._place(states)
        changes: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for entry, output in zip(entries, outputs, strict=True):
            if entry.counted > len(output):  # another output than the one that was counted
                entry.counted = -1
            if entry.counted < 0:
                self._counts[entry.row].zero_()
                prompt = np.unique(np.array(entry.state.prompt_token_ids, dtype=np.int64))
                changes.append((entry.row * self._vocab + prompt, np.full_like(prompt, IN_PROMPT)))
                entry.counted = 0
            new = np.array(output[entry.counted :], dtype=np.int64)
            changes.append((entry.row * self._vocab + new, np.ones_like(new)))
            entry.counted = len(output)
        places, values = (np.concatenate(parts) for parts in zip(*changes, strict=True))
        if len(places):
            changed = torch.from_numpy(np.stack([places, values]))
            changed = to_device(changed, self._device)
            self._counts.view(-1).index_add_(0, changed[0], changed[1].int())
        return [entry.row for entry in entries]

    def _place(self, states: list[SamplingState]) -> list[_Entry]:
        """An entry for each state; new ones have counted −1 tokens."""
        known = [self._entries.pop(id(state), None) for state in states]
        taken = {entry.row for entry in self._entries.values()}
        taken |= {entry.row for entry in known if entry is not None}
        free = [row for row in range(len(self._counts)) if row not in taken]
        missing = known.count(None)
        while len(free) < missing and self._entries:
            free.append(self._entries.pop(next(iter(self._entries))).row)
        if len(free) < missing:
            free += self._grow(missing - len(free))
        entries = [
            _Entry(state, free.pop(0), -1) if entry is None else entry
            for state, entry in zip(states, known, strict=True)
        ]
        self._entries |= {id(state): entry for state, entry in zip(states, entries, strict=True)}
        return entries

    def _grow(self, by: int) -> range:
        """New rows, at least `by`."""
        old = len(self._counts)
        more = max(by, old)
        empty = torch.zeros((more, self._vocab), dtype=torch.int32, device=self._device)
        self._counts = torch.cat([self._counts, empty])
        return range(old, old + more)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on its way to a device, without waiting for either."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
