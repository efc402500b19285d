"""Which tile of which chunk each program computes: made once for a step, for all of its layers.

Tiles are anchored at absolute positions, multiples of their number of queries. A query therefore
shares its tile with the same neighbours however its sequence is cut into chunks. Tiles of late
positions come first: they have the most to read, and short ones fill the gaps at the end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.batch import PrefillChunks


@dataclass(frozen=True, slots=True)
class TileMap:
    """Tiles of all chunks."""

    tiles: Tensor
    """[N, 2] int32 on the device: chunk, first absolute position."""
    starts: list[int]
    """The first positions on the host; they descend."""

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """What the kernels' grids are laid over."""

    chunks: Tensor
    """[C, 4] int32: first position, position behind the last query, row of the first query,
    first row of the sequence's slots in the gathered ones."""
    block_table: Tensor
    """[C, W] int32"""
    flash: TileMap
    scores: TileMap
    gather: TileMap
    """Its positions are slots."""
    num_slots: int
    """Of all chunks together."""
    first_position: int
    """The least of all queries."""


@dataclass(frozen=True, slots=True)
class PlanKey:
    """What a plan depends on besides the chunks. A number of queries of 0 makes no tiles."""

    flash_queries: int
    score_queries: int
    gather_slots: int
    stride: int
    dense_end: int
    """Queries before it need no scores."""


def make_plan(chunks: PrefillChunks, key: PlanKey) -> PrefillPlan:
    """Tiles of these chunks, in one copy to their device."""
    first = torch.tensor(chunks.first_positions, dtype=torch.int64)
    lengths = torch.tensor(chunks.lengths, dtype=torch.int64)
    end = first + lengths
    slots = end // key.stride if key.gather_slots else torch.zeros_like(end)
    info = torch.stack([first, end, _starts(lengths), _starts(slots)], 1)
    flash = _tiles(first, end, key.flash_queries)
    scores = _tiles(first.clamp_min(key.dense_end), end, key.score_queries)
    gather = _tiles(torch.zeros_like(slots), slots, key.gather_slots)
    device = chunks.block_table.device
    joined = torch.cat([info.view(-1), flash.view(-1), scores.view(-1), gather.view(-1)])
    parts = (
        joined.to(torch.int32)
        .to(device, non_blocking=True)
        .split([info.numel(), flash.numel(), scores.numel(), gather.numel()])
    )
    return PrefillPlan(
        chunks=parts[0].view(-1, 4),
        block_table=chunks.block_table.contiguous(),
        flash=TileMap(parts[1].view(-1, 2), flash[:, 1].tolist()),
        scores=TileMap(parts[2].view(-1, 2), scores[:, 1].tolist()),
        gather=TileMap(parts[3].view(-1, 2), gather[:, 1].tolist()),
        num_slots=int(slots.sum()),
        first_position=min(chunks.first_positions, default=0),
    )


def _starts(lengths: Tensor) -> Tensor:
    return lengths.cumsum(0) - lengths


def _tiles(first: Tensor, end: Tensor, size: int) -> Tensor:
    """[N, 2] (chunk, first position) of tiles that cover [first, end) of each chunk, sorted."""
    if size == 0:
        return torch.zeros(0, 2, dtype=torch.int64)
    runs = []
    for chunk, (low, high) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        start = torch.arange(low // size * size, max(high, low // size * size), size)
        if high <= low:
            start = start[:0]
        runs.append(torch.stack([torch.full_like(start, chunk), start], 1))
    tiles = torch.cat(runs)
    return tiles[tiles[:, 1].argsort(descending=True, stable=True)]


@dataclass(frozen=True, slots=True)
class Slab:
    """Score tiles [start, stop) of a plan, whose block scores share a workspace."""

    start: int
    stop: int
    num_blocks: int
    """The most blocks that any of their queries sees, rounded up."""


def slabs(
    tiles: TileMap, queries_per_tile: int, select_block: int, bytes_per_block: int, limit: int
) -> list[Slab]:
    """Cut the tiles so that no slab's scores take more than `limit` bytes, but at least one tile.

    bytes_per_block: what one block of one query takes, over all kv heads.
    """
    made = []
    start = 0
    while start < len(tiles):
        last = tiles.starts[start] + queries_per_tile - 1
        num_blocks = -(-(last // select_block + 1) // 16) * 16
        count = max(1, limit // (queries_per_tile * num_blocks * bytes_per_block))
        stop = min(start + count, len(tiles))
        made.append(Slab(start, stop, num_blocks))
        start = stop
    return made
