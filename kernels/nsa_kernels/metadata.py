"""What attention must know of a step: which tokens, of which sequences, in which pages.

Made once for a step and shared by its layers. Single queries (`RowGroup`) and runs of several
(`Chunk`) are treated apart; whether a single query decodes or ends a prefill makes no difference.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nsa_kernels.attend.reference import BlockList, block_list, causal_bias, recent_blocks
from nsa_kernels.geometry import head_token_rows


@dataclass(slots=True)
class RowGroup:
    """Single queries, of contexts of similar length, at consecutive places of the step's tokens."""

    start: int
    stop: int
    positions: Tensor
    """[N]"""
    block_table: Tensor
    """[N, pages]"""
    last_position: int
    """The greatest of `positions`."""
    _lists: dict[tuple[int, int | None, int], BlockList] = field(default_factory=dict)

    def recent(self, num_keys: int | None, block: int, kv_heads: int, page_size: int) -> BlockList:
        """The last `num_keys` keys of each row (None: all), made once for all layers."""
        key = (block, num_keys, kv_heads)
        if key not in self._lists:
            blocks = recent_blocks(self.positions, block, num_keys)
            self._lists[key] = block_list(
                self.block_table, blocks, self.positions, kv_heads, block, page_size, num_keys
            )
        return self._lists[key]


@dataclass(slots=True)
class Chunk:
    """Several consecutive queries of one sequence."""

    start: int
    stop: int
    first_position: int
    block_table: Tensor
    """[1, pages]"""
    _biases: dict[tuple[int, int, int, int, int | None], Tensor] = field(default_factory=dict)

    @property
    def num_queries(self) -> int:
        """Queries of the chunk."""
        return self.stop - self.start

    def bias(
        self, query: int, num_queries: int, key: int, num_keys: int, window: int | None
    ) -> Tensor:
        """Causal bias [1, 1, num_queries, num_keys] of absolute positions, made once for all
        layers."""
        shape = (query, num_queries, key, num_keys, window)
        if shape not in self._biases:
            bias = causal_bias(*shape, self.block_table.device)
            self._biases[shape] = bias[None, None]
        return self._biases[shape]


@dataclass(slots=True, frozen=True)
class SlotWork:
    """The compressed slots that complete in this step."""

    slots: Tensor
    """[S] their indices in their sequences"""
    block_table: Tensor
    """[S, pages] of their sequences"""


@dataclass(slots=True, frozen=True)
class AttentionMetadata:
    """A step of T tokens."""

    token_rows: Tensor
    """[T] page · page_size + offset of each token's place in the caches"""
    page_size: int
    groups: list[RowGroup]
    chunks: list[Chunk]
    completed: SlotWork | None
    """None where no slot completes, or no layer compresses."""
    _head_rows: dict[int, Tensor] = field(default_factory=dict)

    def head_rows(self, num_kv_heads: int) -> Tensor:
        """Where each token of each kv head is written, [T · kv_heads]; made once for all layers."""
        if num_kv_heads not in self._head_rows:
            rows = head_token_rows(self.token_rows, num_kv_heads, self.page_size)
            self._head_rows[num_kv_heads] = rows
        return self._head_rows[num_kv_heads]


def slots_completed(spec_stride: int, first_slot: int, start: int, stop: int) -> range:
    """Slots that complete at tokens [start, stop) of a sequence."""
    return range(max(start // spec_stride, first_slot), stop // spec_stride)


def long(values: list[int], device: torch.device) -> Tensor:
    """int64 tensor on a device."""
    return torch.tensor(values, dtype=torch.int64, device=device)
