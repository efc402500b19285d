"""Decode steps of a padded size, launched kernel by kernel or replayed as CUDA graphs."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
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


class GraphKey(NamedTuple):
    """What a graph was captured for."""

    batch: int
    context: int
    """No position is as large as this."""
    lists_slots: bool
    """Whether it makes the slots that the inputs list."""


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
        self._pool = torch.cuda.graph_pool_handle() if use_graphs else None
        self._stream = torch.cuda.Stream(tables.device.device) if use_graphs else None

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def padded(self, num_rows: int) -> int:
        """Rows that a batch is padded to."""
        return smallest_that_holds(self._batches, num_rows) if self._use_graphs else num_rows

    def run(
        self,
        inputs: RowInputs,
        *,
        num_tokens: int,
        lists_slots: bool,
        token_ids: Tensor | None = None,
    ) -> Tensor:
        """Run rows padded to `padded`, of contexts of up to `num_tokens` tokens. `token_ids`
        [rows of the tables], on the device, stand for the inputs' own. Returns, on the device,
        which row of the tables each row has."""
        context = smallest_that_holds(self._contexts, num_tokens)
        key = GraphKey(len(inputs.positions), context, lists_slots)
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

    def capture_first(self, batches: Sequence[int]) -> None:
        """Capture the graphs of short contexts for these sizes of batches."""
        if self._use_graphs:
            for batch in batches:
                if batch in self._batches:
                    self.capture(GraphKey(batch, self._contexts[0], lists_slots=False))

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
