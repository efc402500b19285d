"""What the GPU kernels must know of a step: its single queries, its chunks, its completed slots.

Unlike `metadata`, nothing here has a shape that depends on lengths: tables are as wide as they will
ever be and a padding row has position −1, so a CUDA graph can replay over the same tensors.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """B single queries, each of a sequence of its own."""

    positions: Tensor
    """[B] int32: of each query; −1 for a padding row, which reads nothing and gives zeros."""
    block_table: Tensor
    """[B, W] int32; what lies beyond a row's own pages is never read."""
    max_context: int
    """No position is as large as this. It bounds grids; it must not change any result."""

    @property
    def num_rows(self) -> int:
        """B, padding included."""
        return self.positions.shape[0]


@dataclass(frozen=True, slots=True)
class PrefillChunks:
    """C runs of consecutive queries, each of a sequence of its own, one after the other."""

    first_positions: list[int]
    """Position of each chunk's first query."""
    lengths: list[int]
    """Queries of each chunk."""
    block_table: Tensor
    """[C, W] int32"""
    plans: dict[object, object] = field(default_factory=dict, repr=False, compare=False)
    """What the prefill kernels derive from the chunks, made once for all layers."""

    @property
    def num_queries(self) -> int:
        """Of all chunks together."""
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class CompletedSlots:
    """S compressed slots that complete at tokens of the step."""

    slots: Tensor
    """[S] int32: index in its sequence; −1 for padding."""
    rows: Tensor
    """[S] int32: row of `block_table`."""
    block_table: Tensor
    """[N, W] int32"""
