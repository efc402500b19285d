"""Decode steps of a padded size, launched kernel by kernel or replayed as CUDA graphs.

Capturing takes as long as launching a step twice without a graph, some tens of milliseconds, and
whoever is served waits for it. So the start captures as many as a second allows, and a graph of up
to twice the batch, or of a longer context, stands in for one that is not there until that has been
wanted a few times.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nsa_serve.engine.gpu_inputs import BlockTables, RowInputs, Uploader, packed_size

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Sizes of batches that have graphs of their own; beyond, multiples of 64."""
FIRST_CONTEXT, CONTEXT_FACTOR = 1024, 8
"""Contexts that have graphs of their own: a long one's grids are mostly idle for a short one, and
in the shortest nothing is left out, so nothing is ranked."""


_SECONDS_FOR_MORE = 1.0
"""At the start no further context's graphs are begun after that; the first's are all captured."""
_SMALL = 16
"""Batches up to this are never padded further, for matrix products of another size may round
otherwise: the same few requests should give the same tokens every time."""
_USES_WITHOUT = 8
"""Steps for which another graph stands in before the one that fits is captured."""


class GraphKey(NamedTuple):
    """What a graph was captured for."""

    batch: int
    context: int
    """No position is as large as this."""
    lists_slots: bool
    """Whether it makes the slots that the inputs list."""

    def stands_in_for(self, wanted: "GraphKey") -> bool:
        """Whether it computes all of a step of that key, and not much more slowly."""
        return (
            wanted.context <= self.context
            and wanted.lists_slots <= self.lists_slots
            and wanted.batch <= self.batch <= 2 * wanted.batch
            and (wanted.batch == self.batch or wanted.batch > _SMALL)
        )


def stand_in(wanted: GraphKey, captured: Collection[GraphKey]) -> GraphKey | None:
    """The graph that costs least of those that can take the place of another, if any can."""
    return min((key for key in captured if key.stands_in_for(wanted)), default=None)


class RowBuffers:
    """Inputs of B single queries at fixed places of a device."""

    def __init__(self, batch: int, width: int, padding_row: int, device: torch.device) -> None:
        self.padding = padding_inputs(batch, padding_row)
        self.memory = torch.zeros(
            packed_size(self.padding.arrays), dtype=torch.uint8, device=device
        )
        """Where an `Uploader` writes the arrays of a `RowInputs`."""
        self.token_rows = self.token_ids = self.table_rows = self.memory[:0]
        self.positions = self.slots = self.memory[:0]
        self.block_table = torch.zeros((batch, width), dtype=torch.int32, device=device)
        self.items = torch.arange(batch, dtype=torch.int32, device=device)

    def write(self, inputs: RowInputs, upload: Uploader) -> None:
        """Copy inputs of B rows to the device."""
        self.token_rows, self.token_ids, self.table_rows, self.positions, self.slots = upload(
            inputs.arrays, self.memory
        )


def padding_inputs(batch: int, padding_row: int) -> RowInputs:
    """Rows that read and write nothing."""
    nothing = np.full(batch, -1, np.int32)
    rows = np.full(batch, padding_row, np.int64)
    return RowInputs(np.full(batch, -1, np.int64), np.zeros_like(rows), rows, nothing, nothing)


def batch_sizes(largest: int) -> list[int]:
    """Sizes that batches of up to `largest` are padded to."""
    sizes = [size for size in BATCHES if size < largest]
    sizes += range(BATCHES[-1] + 64, largest, 64)
    return [*sizes, largest]


def context_bounds(largest: int) -> list[int]:
    """Contexts, ascending, up to `largest`."""
    bounds, bound = [], FIRST_CONTEXT
    while bound < largest:
        bounds.append(bound)
        bound *= CONTEXT_FACTOR
    return [*bounds, largest]


def smallest_that_holds(sizes: Sequence[int], wanted: int) -> int:
    """The first of ascending sizes that is at least `wanted`."""
    return sizes[bisect_left(sizes, wanted)]


def first_sizes(batches: Sequence[int]) -> list[int]:
    """Of ascending sizes the fewest that leave none without one of at most its double above."""
    first = [batches[-1]]
    for smaller, size in zip(reversed(batches[:-1]), reversed(batches), strict=False):
        if 2 * smaller < first[-1]:
            first.append(size)
    return [*dict.fromkeys([batches[0], *reversed(first)])]


Forward = Callable[[RowBuffers, GraphKey], None]
"""The device's work for a step of single queries whose inputs are in buffers."""


class DecodeSteps:
    """Runs steps of single queries."""

    def __init__(
        self,
        forward: Forward,
        tables: BlockTables,
        upload: Uploader,
        *,
        max_batch: int,
        max_context: int,
        use_graphs: bool,
    ) -> None:
        self._forward, self._tables, self._upload = forward, tables, upload
        self._use_graphs = use_graphs
        self._batches = batch_sizes(max_batch)
        self._contexts = context_bounds(max_context)
        self._buffers: dict[int, RowBuffers] = {}
        self._graphs: dict[GraphKey, torch.cuda.CUDAGraph] = {}
        self._uses: Counter[GraphKey] = Counter()
        """Of stand-ins, by what they stood in for."""
        self._pool = torch.cuda.graph_pool_handle() if use_graphs else None
        self._stream = torch.cuda.Stream(tables.device.device) if use_graphs else None

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def key(self, num_rows: int, num_tokens: int, *, lists_slots: bool) -> GraphKey:
        """What to pad a step to: of so many rows, of contexts of up to `num_tokens` tokens."""
        context = smallest_that_holds(self._contexts, num_tokens)
        if not self._use_graphs:
            return GraphKey(num_rows, context, lists_slots)
        key = GraphKey(smallest_that_holds(self._batches, num_rows), context, lists_slots)
        if key in self._graphs:
            return key
        other = stand_in(key, self._graphs)
        self._uses[key] += 1
        return key if other is None or self._uses[key] > _USES_WITHOUT else other

    def run(self, inputs: RowInputs, key: GraphKey, token_ids: Tensor | None = None) -> Tensor:
        """Run rows padded to a `key`'s batch. `token_ids` [rows of the tables], on the device,
        stand for the inputs' own. Returns, on the device, which row of the tables each row has."""
        buffers = self._buffers_of(key.batch)
        if self._use_graphs and key not in self._graphs:
            self.capture(key)
        buffers.write(inputs, self._upload)
        if token_ids is not None:
            torch.index_select(token_ids, 0, buffers.table_rows, out=buffers.token_ids)
        if self._use_graphs:
            self._graphs[key].replay()
        else:
            self._forward(buffers, key)
        return buffers.table_rows

    def capture_first(self, *, lists_slots: bool) -> None:
        """Capture graphs of every other size, from the largest down, so that the smaller find
        memory that was held already: of the shortest context, then while there is time of the
        longest, which can stand in for any, and of those between."""
        if not self._use_graphs:
            return
        began = time.monotonic()
        shortest, *others = self._contexts
        for context in dict.fromkeys([shortest, *others[-1:], *others]):
            for batch in reversed(first_sizes(self._batches)):
                self.capture(GraphKey(batch, context, lists_slots))
            if time.monotonic() - began > _SECONDS_FOR_MORE:
                return

    def capture(self, key: GraphKey) -> None:
        """Capture a graph, after a run that compiles what it launches; rows of padding, so neither
        writes anything."""
        assert self._stream is not None
        buffers = self._buffers_of(key.batch)
        buffers.write(buffers.padding, self._upload)
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._forward(buffers, key)
            self._stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._forward(buffers, key)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._graphs[key] = graph

    def _buffers_of(self, batch: int) -> RowBuffers:
        buffers = self._buffers.get(batch)
        if buffers is None:
            tables = self._tables
            width, device = tables.host.shape[1], tables.device.device
            buffers = RowBuffers(batch, width, tables.padding_row, device)
            if self._use_graphs:  # else every size is one of its own
                self._buffers[batch] = buffers
        return buffers
