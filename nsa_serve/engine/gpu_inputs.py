"""A step's inputs for a GPU: page tables that follow their sequences, and numbers in one copy."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsa_kernels.metadata import slots_completed
from nsa_scheduler.output import ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.engine.inputs import SlotRule

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}
_ALIGNMENT = 16
_NUM_STAGING = 4
"""Copies that may be on their way at once: what a step needs, and one that runs ahead."""


@dataclass(slots=True)
class _Row:
    index: int
    pages: list[int]
    known: int = 0
    """Pages that the table has."""


class BlockTables:
    """The pages of every sequence that runs, a row each, here and on the device.

    A row follows its sequence's own list: only what was appended since the last step is copied.
    One more row, the last, belongs to nobody: rows that pad a batch read it.
    """

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        self.host: Ints = np.zeros((num_rows + 1, width), np.int32)
        self.device = torch.zeros((num_rows + 1, width), dtype=torch.int32, device=device)
        self._rows: dict[int, _Row] = {}
        self._free = list(range(num_rows - 1, -1, -1))
        self._changes: list[tuple[int, int, int]] = []

    @property
    def padding_row(self) -> int:
        """The row that belongs to nobody."""
        return len(self.host) - 1

    def row(self, sequence: Sequence) -> int:
        """The sequence's row, which has all its pages here; on the device after `flush`."""
        row = self._rows.get(sequence.sequence_id)
        if row is None:
            row = self._rows[sequence.sequence_id] = _Row(self._free.pop(), sequence.pages)
        elif row.pages is not sequence.pages:  # it was preempted and has others now
            row.pages, row.known = sequence.pages, 0
        count = len(row.pages)
        if count > row.known:
            self.host[row.index, row.known : count] = row.pages[row.known :]
            self._changes.append((row.index, row.known, count))
            row.known = count
        return row.index

    def release(self, sequence_id: int) -> None:
        """Let another sequence have the row; an unknown id is no error."""
        row = self._rows.pop(sequence_id, None)
        if row is not None:
            self._free.append(row.index)

    def forget(self) -> None:
        """Take no row's content on the device for granted: a step failed."""
        self._changes.clear()
        for row in self._rows.values():
            row.known = 0

    def flush(self, upload: "Uploader") -> None:
        """Bring the device's table up to date."""
        if not self._changes:
            return
        width = self.host.shape[1]
        flat = np.concatenate(
            [np.arange(row * width + a, row * width + b) for row, a, b in self._changes]
        )
        self._changes.clear()
        places, pages = upload([flat, self.host.reshape(-1)[flat]])
        self.device.view(-1).index_copy_(0, places, pages)


class Uploader:
    """Copies arrays to a device in one piece, by way of pinned memory, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stages = cycle([_Stage(device) for _ in range(_NUM_STAGING)])

    def __call__(
        self, arrays: SequenceOf[NDArray[np.generic]], into: Tensor | None = None
    ) -> list[Tensor]:
        """Views of one device tensor with the arrays' content; `into` [bytes] uint8 is it, where
        it is given."""
        offsets, size = _layout(arrays)
        target = torch.empty(size, dtype=torch.uint8, device=self._device) if into is None else into
        next(self._stages).send(arrays, offsets, target[:size])
        return _views(target, arrays, offsets)


class _Stage:
    """A piece of pinned memory, not written again before its last copy has ended."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def send(
        self, arrays: SequenceOf[NDArray[np.generic]], offsets: list[int], target: Tensor
    ) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        if len(self._memory) < len(target):
            size = max(2 * len(target), 4096)
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._on_gpu)
        buffer = self._memory.numpy()
        for array, offset in zip(arrays, offsets, strict=True):
            buffer[offset : offset + array.nbytes].view(array.dtype)[:] = array
        target.copy_(self._memory[: len(target)], non_blocking=True)
        if self._on_gpu:
            self._copied = self._copied or torch.cuda.Event()
            self._copied.record()


def packed_size(arrays: SequenceOf[NDArray[np.generic]]) -> int:
    """Bytes that an `Uploader` needs for arrays of such sizes."""
    return _layout(arrays)[1]


def _layout(arrays: SequenceOf[NDArray[np.generic]]) -> tuple[list[int], int]:
    """Where each array begins, and the bytes of all."""
    offsets, size = [], 0
    for array in arrays:
        offsets.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, size


def _views(
    memory: Tensor, arrays: SequenceOf[NDArray[np.generic]], offsets: list[int]
) -> list[Tensor]:
    return [
        memory[offset : offset + array.nbytes].view(_TYPES[array.dtype])
        for array, offset in zip(arrays, offsets, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Single queries as arrays, padded: `padding_row`, position −1 and nothing written."""

    token_rows: Longs
    token_ids: Longs
    table_rows: Longs
    positions: Ints
    slots: Ints
    """The slot that completes at each row's token, −1 for none."""

    @property
    def arrays(self) -> list[NDArray[np.generic]]:
        """In the order of the fields."""
        return [self.token_rows, self.token_ids, self.table_rows, self.positions, self.slots]


def row_inputs(
    tables: BlockTables,
    rows: SequenceOf[int],
    positions: Ints,
    token_ids: SequenceOf[int],
    slots: Ints,
    *,
    page_size: int,
    padded_to: int,
) -> RowInputs:
    """Inputs of single queries, one for each of `rows` of the tables, with the slots that they
    complete."""
    n = len(rows)
    table_rows = np.full(padded_to, tables.padding_row, np.int64)
    table_rows[:n] = rows
    all_positions = np.full(padded_to, -1, np.int32)
    all_positions[:n] = positions
    ids = np.zeros(padded_to, np.int64)
    ids[:n] = token_ids
    token_rows = np.full(padded_to, -1, np.int64)
    token_rows[:n] = _token_rows(tables, table_rows[:n], all_positions[:n], page_size)
    all_slots = np.full(padded_to, -1, np.int32)
    all_slots[:n] = slots
    return RowInputs(token_rows, ids, table_rows, all_positions, all_slots)


def slots_of_rows(positions: Ints, rule: SlotRule | None) -> Ints:
    """The slot that completes at each of the positions, −1 for none."""
    if rule is None:
        return np.full_like(positions, -1)
    slots = (positions + 1) // rule.stride - 1
    completes = ((positions + 1) % rule.stride == 0) & (slots >= rule.first_slot)
    return np.where(completes, slots, -1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class MixedInputs:
    """Single queries, then chunks, as arrays over all T tokens."""

    token_rows: Longs
    token_ids: Longs
    table_rows: Longs
    """Of each item."""
    last_tokens: Longs
    """Of each item that is sampled: its last token's place among the T."""
    sampled_rows: Longs
    """Of each item that is sampled: its row of the tables."""
    positions: Ints
    slots: Ints
    """[S]: the slots that complete, of those items whose slots are listed."""
    slot_items: Ints
    """[S]: the item that completes it."""

    @property
    def arrays(self) -> list[NDArray[np.generic]]:
        """In the order of the fields."""
        return [
            self.token_rows,
            self.token_ids,
            self.table_rows,
            self.last_tokens,
            self.sampled_rows,
            self.positions,
            self.slots,
            self.slot_items,
        ]


def mixed_inputs(
    tables: BlockTables,
    items: SequenceOf[ScheduledSequence],
    *,
    page_size: int,
    rule: SlotRule | None,
    num_unlisted: int,
) -> MixedInputs:
    """Inputs of items in the order in which they are given; the slots of the first `num_unlisted`
    are not listed."""
    table_rows = np.array([tables.row(item.sequence) for item in items], np.int64)
    counts = np.array([item.num_tokens for item in items])
    positions = np.concatenate([np.arange(i.start, i.end, dtype=np.int32) for i in items])
    token_ids = np.concatenate(
        [np.array(i.sequence.token_ids[i.start : i.end], np.int64) for i in items]
    )
    slots = [_slots(item, rule) for item in items[num_unlisted:]]
    slot_items = np.arange(num_unlisted, len(items), dtype=np.int32)
    samples = np.array([item.samples for item in items])
    return MixedInputs(
        token_rows=_token_rows(tables, np.repeat(table_rows, counts), positions, page_size),
        token_ids=token_ids,
        table_rows=table_rows,
        last_tokens=(counts.cumsum() - 1)[samples],
        sampled_rows=table_rows[samples],
        positions=positions,
        slots=np.concatenate([np.empty(0, np.int32), *slots]),
        slot_items=np.repeat(slot_items, [len(s) for s in slots]),
    )


def _slots(item: ScheduledSequence, rule: SlotRule | None) -> Ints:
    """Slots that complete at the item's tokens."""
    if rule is None:
        return np.empty(0, np.int32)
    completed = slots_completed(rule.stride, rule.first_slot, item.start, item.end)
    return np.arange(completed.start, max(completed.start, completed.stop), dtype=np.int32)


def _token_rows(tables: BlockTables, table_rows: Longs, positions: Ints, page_size: int) -> Longs:
    """page · page_size + offset of each token."""
    pages = tables.host[table_rows, positions // page_size].astype(np.int64)
    return pages * page_size + positions % page_size
