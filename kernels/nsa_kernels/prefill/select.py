"""The exact top n of each query's blocks, and the union of a tile's choices.

One program takes the neighbouring queries of a tile, a few at a time. For each it finds the n-th
highest score by bisection over the bits of float32, which needs no more than counting; of equal
scores the lower blocks are taken. What it leaves behind is an ascending list of the blocks that any
of its queries chose, each with a bit for every query that did.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.prefill.plan import Slab
from nsa_kernels.prefill.sizes import LayerSizes, num_parts
from nsa_kernels.prefill.tiles import next_power_of_2
from nsa_kernels.spec import SparseSpec

_LEAST_BLOCKS = 256
"""Contexts up to it share one compiled kernel."""


@dataclass(frozen=True, slots=True)
class TileLists:
    """Ascending blocks that each tile of a slab reads, per kv head."""

    counts: Tensor
    """[tiles, kv_heads] int32"""
    blocks: Tensor
    """[tiles, kv_heads, capacity] int32: index in the sequence."""
    places: Tensor
    """[tiles, kv_heads, capacity] int32: page · blocks per page + block in the page."""
    queries: Tensor
    """[tiles, kv_heads, capacity] int32: bit r is set where query r of the tile reads it."""


@triton.jit
def _ordered(x: tl.tensor) -> tl.tensor:
    """float32 → int32 of the same order."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # −0.0 + 0.0 is 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _best(keys: tl.tensor, n: tl.tensor, NOTHING: tl.constexpr) -> tl.tensor:
    """Which n [rows] of the keys [rows, N] are the highest, the lower index on a tie; all those
    above NOTHING if there are fewer."""
    candidates = keys > NOTHING
    low = tl.min(tl.where(candidates, keys, 0x7FFFFFFF), 1).to(tl.int64)
    high = tl.max(keys, 1).to(tl.int64)
    count = tl.sum(candidates.to(tl.int32), 1)
    # At least n keys are ≥ low (unless there are fewer in all), and fewer than n are > high.
    searching = (low < high) & (count > n)
    while tl.max(searching.to(tl.int32), 0) > 0:
        middle = (low + high + 1) >> 1
        above = tl.sum((keys >= middle.to(tl.int32)[:, None]).to(tl.int32), 1)
        low = tl.where(searching & (above >= n), middle, low)
        high = tl.where(searching & (above < n), middle - 1, high)
        count = tl.where(low == middle, above, count)
        searching = (low < high) & (count > n)
    at_least = low.to(tl.int32)[:, None]
    higher = candidates & (keys > at_least)
    equal = candidates & (keys == at_least)
    left = n - tl.sum(higher.to(tl.int32), 1)
    return higher | (equal & (tl.cumsum(equal.to(tl.int32), 1) <= left[:, None]))


@triton.jit(do_not_specialize=["first_tile", "table_width", "dense_end", "capacity"])
def _select_kernel(
    counts: tl.tensor,
    list_blocks: tl.tensor,
    list_places: tl.tensor,
    list_queries: tl.tensor,
    parts: tl.tensor,
    tiles: tl.tensor,
    chunks: tl.tensor,
    block_table: tl.tensor,
    first_tile: tl.tensor,
    table_width: tl.tensor,
    dense_end: tl.tensor,
    num_blocks: tl.tensor,
    part_stride: tl.tensor,
    capacity: tl.tensor,
    floor: tl.tensor,
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
    MODE: tl.constexpr,
    N: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    COUNTED: tl.constexpr,
    HALVES: tl.constexpr,
    FLOOR: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    SUBTILE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PAGE: tl.constexpr,
) -> None:
    PER_TILE: tl.constexpr = QUERIES // SUBTILE
    PER_BLOCK: tl.constexpr = SELECT_BLOCK // STRIDE
    PER_PAGE: tl.constexpr = PAGE // SELECT_BLOCK
    NOTHING: tl.constexpr = -0x7F800001  # _ordered(−inf)
    FORCED: tl.constexpr = 0x7F800000  # _ordered(inf)
    kv_head = tl.program_id(1)
    tile = tl.program_id(0) // PER_TILE
    chunk = tl.load(tiles + 2 * (first_tile + tile))
    tile_start = tl.load(tiles + 2 * (first_tile + tile) + 1)
    start = tile_start + tl.program_id(0) % PER_TILE * SUBTILE
    first = tl.maximum(tl.maximum(start, tl.load(chunks + 4 * chunk)), dense_end)
    last = tl.minimum(start + SUBTILE, tl.load(chunks + 4 * chunk + 1))

    blocks = tl.arange(0, BLOCKS)
    index = blocks[None, :]
    chosen_by = tl.zeros([BLOCKS], tl.int32)
    for group in range(first, last, AT_ONCE):
        position = (group + tl.arange(0, AT_ONCE))[:, None]
        current = position // SELECT_BLOCK
        seen = (index <= current) & (position < last)
        row = (tile * QUERIES + position - tile_start).to(tl.int64) * KV_HEADS + kv_head
        source = parts + row * num_blocks + index
        score = tl.load(source, mask=seen, other=0.0)
        for a in tl.static_range(1, PARTS):
            inside = (index + a <= current) & (position < last)
            spilled = tl.load(source + a * part_stride + a, mask=inside, other=0.0)
            if MODE == "max_pool":
                score = tl.maximum(score, spilled)
            else:
                score += spilled
        scored = seen
        if MODE == "logit_mean":
            existing = tl.minimum((index + 1) * PER_BLOCK - FIRST_SLOT, PER_BLOCK)
            complete = (index + 1) * SELECT_BLOCK - 1 + STRICT <= position
            scored = seen & complete & (existing > 0)
            score = score / tl.maximum(existing, 1).to(tl.float32)
        score = tl.where(scored, score, float("-inf"))
        if FLOOR:
            top = tl.max(score, 1)[:, None]
            weight = tl.exp(score - tl.where(top == float("-inf"), 0.0, top))
            score = tl.where(weight <= floor * tl.sum(weight, 1)[:, None], float("-inf"), score)
        forced = seen & ((index < INIT) | (index > current - LOCAL))
        keys = tl.where(forced, FORCED if COUNTED else NOTHING, _ordered(score))
        if HALVES:
            border = current // N * N
            n = tl.max(tl.where(border > 0, N // 2, N), 1)
            newer = _best(tl.where(index < border, NOTHING, keys), n, NOTHING)
            chosen = newer | _best(tl.where(index < border, keys, NOTHING), n, NOTHING)
        else:
            chosen = _best(keys, tl.full([AT_ONCE], N, tl.int32), NOTHING)
        if not COUNTED:
            chosen = chosen | forced
        chosen_by += tl.sum(tl.where(chosen, 1 << (position - start), 0), 0)

    present = chosen_by != 0
    out = (tl.program_id(0).to(tl.int64) * KV_HEADS + kv_head) * capacity
    out += tl.cumsum(present.to(tl.int32), 0) - 1
    table = block_table + chunk.to(tl.int64) * table_width
    page = tl.load(table + blocks // PER_PAGE, mask=present, other=0)
    tl.store(list_blocks + out, blocks, mask=present)
    tl.store(list_places + out, page * PER_PAGE + blocks % PER_PAGE, mask=present)
    tl.store(list_queries + out, chosen_by, mask=present)
    tl.store(counts + tl.program_id(0) * KV_HEADS + kv_head, tl.sum(present.to(tl.int32), 0))


def most_blocks(spec: SparseSpec) -> int:
    """Blocks that one query reads at most, where it does not read all."""
    on_top = 0 if spec.forced_counted else spec.init_blocks + spec.local_blocks
    return spec.num_selected + on_top


def tile_lists(sizes: LayerSizes, parts: Tensor, slab: Slab) -> TileLists:
    """Choose blocks for every query of a slab, and join the choices of neighbours."""
    spec, plan, heads = sizes.spec, sizes.plan, sizes.heads
    subtile = heads.selected_queries
    num_tiles = (slab.stop - slab.start) * (heads.score_queries // subtile)
    capacity = min(slab.num_blocks, subtile * most_blocks(spec))
    lists = TileLists(
        *(
            torch.empty((num_tiles, heads.kv_heads, *more), dtype=torch.int32, device=parts.device)
            for more in ((), (capacity,), (capacity,), (capacity,))
        )
    )
    constants = sizes.constants("select", _constants)
    blocks = next_power_of_2(max(slab.num_blocks, _LEAST_BLOCKS))
    elements = constants["AT_ONCE"] * blocks
    _select_kernel[(num_tiles, heads.kv_heads)](
        lists.counts,
        lists.blocks,
        lists.places,
        lists.queries,
        parts,
        plan.scores.tiles,
        plan.chunks,
        plan.block_table,
        slab.start,
        plan.block_table.shape[1],
        sizes.dense_end,
        slab.num_blocks,
        parts.stride(0),
        capacity,
        spec.selection_floor,
        BLOCKS=blocks,
        **constants,
        num_warps=min(16, max(1, elements // (32 * heads.tuning.select_elements))),
    )
    return lists


def _constants(sizes: LayerSizes) -> dict[str, Any]:
    spec, heads = sizes.spec, sizes.heads
    return {
        "PARTS": num_parts(spec),
        "MODE": spec.importance,
        "N": spec.num_selected,
        "INIT": spec.init_blocks,
        "LOCAL": spec.local_blocks,
        "COUNTED": spec.forced_counted,
        "HALVES": spec.half_merge,
        "FLOOR": spec.selection_floor > 0.0,
        "SELECT_BLOCK": spec.select_block,
        "STRIDE": spec.compress_stride,
        "STRICT": int(spec.strict),
        "FIRST_SLOT": spec.first_slot,
        "KV_HEADS": heads.kv_heads,
        "QUERIES": heads.score_queries,
        "SUBTILE": heads.selected_queries,
        "AT_ONCE": min(heads.selected_queries, heads.tuning.select_queries),
        "PAGE": heads.page_size,
    }
