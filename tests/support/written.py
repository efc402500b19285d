"""Caches full of NaN and sequences in scattered pages, for the kernels that write them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.batch import CompletedSlots, DecodeRows
from nsa_kernels.cache import CacheLayout, LayerCache

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRUNCATES = DEVICE.type == "cpu"
"""Triton's interpreter cuts float32 to bfloat16 where a GPU rounds to the nearest."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the device under test."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def nan_cache(layout: CacheLayout, num_pages: int, dtype: torch.dtype) -> LayerCache:
    """A cache in which whatever was not written shows."""
    cache = LayerCache.allocate(layout, num_pages, dtype, DEVICE)
    for tensor in cache.tensors:
        tensor.fill_(torch.nan)
    return cache


def scattered_tables(num_rows: int, width: int, seed: int = 0) -> Tensor:
    """[rows, width] int32 of pages in no order, none twice."""
    order = torch.randperm(num_rows * width, generator=torch.Generator().manual_seed(seed))
    return order.view(num_rows, width).to(DEVICE, torch.int32)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a step, of rows of a block table."""

    positions: Tensor
    """[T] int64; −1 for padding"""
    rows: Tensor
    """[T] row of the block table"""
    block_table: Tensor

    def places(self, page_size: int) -> Tensor:
        """[T] int64: page · P + offset, −1 for padding."""
        positions = self.positions.clamp_min(0)
        pages = self.block_table[self.rows, positions // page_size].long()
        rows = pages * page_size + positions % page_size
        return torch.where(self.positions < 0, -1, rows)

    def as_rows(self) -> DecodeRows:
        """The tokens as single queries of all rows of the table."""
        return DecodeRows(self.positions.int(), self.block_table[self.rows], max_context=1 << 20)


def tokens_of(block_table: Tensor, positions: list[list[int]]) -> Tokens:
    """positions[i] are those of tokens of row i."""
    flat = [t for row in positions for t in row]
    rows = [i for i, row in enumerate(positions) for _ in row]
    return Tokens(torch.tensor(flat, device=DEVICE), torch.tensor(rows, device=DEVICE), block_table)


def slots_of(block_table: Tensor, slots: list[tuple[int, int]]) -> CompletedSlots:
    """(row, slot) pairs."""
    rows, indices = zip(*slots, strict=True) if slots else ((), ())
    return CompletedSlots(
        torch.tensor(indices, dtype=torch.int32, device=DEVICE),
        torch.tensor(rows, dtype=torch.int32, device=DEVICE),
        block_table,
    )
