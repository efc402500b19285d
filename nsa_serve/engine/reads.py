"""How many keys attention reads: counted from positions alone, which is exact and costs nothing.

Counts are of (query, key) pairs, summed over layers, for one kv head: what a decode step reads of
each branch's keys. A block is counted whether or not its scores fall below `selection_floor`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nsa_kernels.spec import SparseSpec
from nsa_scheduler.output import ScheduledBatch

Counts = NDArray[np.int64]


@dataclass(slots=True)
class TokensRead:
    """Since the start, by branch; `context` is what dense attention would have read."""

    compressed: int = 0
    selected: int = 0
    window: int = 0
    dense: int = 0
    """By dense layers, and by NSA layers below `dense_len`."""
    context: int = 0


class ReadCounter:
    """Adds up what the steps of one model read."""

    def __init__(self, spec: SparseSpec | None, num_nsa_layers: int, num_dense_layers: int) -> None:
        self.total = TokensRead()
        self._spec = spec
        self._num_nsa, self._num_dense = num_nsa_layers, num_dense_layers

    def add(self, batch: ScheduledBatch) -> None:
        """Take in a step that was computed."""
        total = self.total
        position = _positions(batch)
        visible = int(position.sum()) + len(position)
        total.context += visible * (self._num_nsa + self._num_dense)
        total.dense += visible * self._num_dense
        if self._spec is None or not self._num_nsa:
            return
        below = position < self._spec.dense_len
        if below.any():
            total.dense += int((position[below] + 1).sum()) * self._num_nsa
            position = position[~below]
        compressed, selected, window = self._spec.uses
        if compressed or selected:
            total.compressed += int(_slots(self._spec, position).sum()) * self._num_nsa
        if selected:
            total.selected += int(_selected(self._spec, position).sum()) * self._num_nsa
        if window:
            total.window += int(np.minimum(position + 1, self._spec.window).sum()) * self._num_nsa


def _positions(batch: ScheduledBatch) -> Counts:
    """Of all queries of a step."""
    single = [item.start for item in batch.items if item.num_tokens == 1]
    chunks = [np.arange(item.start, item.end) for item in batch.items if item.num_tokens != 1]
    return np.concatenate([np.array(single, np.int64), *chunks])


def _slots(spec: SparseSpec, position: Counts) -> Counts:
    """Compressed tokens that each query reads: those it sees, unless they only rank blocks and it
    takes every block."""
    complete = (position + (0 if spec.strict else 1)) // spec.compress_stride
    slots = np.maximum(complete - spec.first_slot, 0)
    if spec.uses[0] or spec.importance == "logit_mean" or spec.selection_floor > 0.0:
        return slots
    return np.where(position // spec.select_block < spec.num_selected, 0, slots)


def _selected(spec: SparseSpec, position: Counts) -> Counts:
    """Tokens of the blocks that each query selects, of its own block those up to itself."""
    own, inside = np.divmod(position, spec.select_block)
    n = spec.num_selected
    if spec.half_merge:
        newer = np.minimum(own % n + 1, n // 2)
        others = np.where(own < n, own, n // 2 + newer - 1)
    else:
        on_top = 0 if spec.forced_counted else spec.init_blocks + spec.local_blocks
        others = np.minimum(own, n + on_top - 1)
    return others * spec.select_block + inside + 1
