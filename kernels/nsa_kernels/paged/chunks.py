"""Runs of neighbouring queries of one sequence over paged caches, in tiles that share keys."""

import torch
from torch import Tensor

from nsa_kernels.attend.reference import attend_tile, tile_bias, union_of_blocks
from nsa_kernels.cache import LayerCache
from nsa_kernels.compressed.reference import (
    CompressedResult,
    compressed_attention,
    visible_slots,
)
from nsa_kernels.geometry import gather_heads, head_rows
from nsa_kernels.metadata import Chunk
from nsa_kernels.paged.queries import Branches, Queries
from nsa_kernels.select.reference import block_mask, block_scores, select_blocks
from nsa_kernels.spec import SparseSpec

DENSE_TILE = 128
"""Queries that share a run of keys: wide enough for the matrix units, narrow enough to skip most
of the keys that none of them sees."""


def recent_chunk(
    q: Tensor, k: Tensor, v: Tensor, chunk: Chunk, scale: float, window: int | None
) -> Tensor:
    """The last `window` keys (None: all) of each query of a chunk's head: q [M, H, D], M at most
    the chunk's length."""
    page_size = k.shape[2]
    first = chunk.first_position
    oldest = 0 if window is None else max(first - window + 1, 0) // page_size
    pages = chunk.block_table[:, oldest : (first + len(q) - 1) // page_size + 1]
    k_run, v_run = _pages_of_one(k, pages), _pages_of_one(v, pages)
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    for start in range(0, len(q), DENSE_TILE):
        stop = min(start + DENSE_TILE, len(q))
        low = 0
        if window is not None:
            low = max(first + start - window + 1, 0) - oldest * page_size
        high = first + stop - oldest * page_size
        low = max(low, 0)
        bias = chunk.bias(first + start, stop - start, oldest * page_size + low, high - low, window)
        out[start:stop] = attend_tile(
            q[start:stop], k_run[:, low:high], v_run[:, low:high], bias, scale
        )
    return out


def _pages_of_one(cache: Tensor, block_table: Tensor) -> Tensor:
    """Whole pages of one sequence: block_table [1, n] → [kv_heads, n·X, dim]."""
    heads, entries = cache.shape[1:3]
    rows = block_table * heads + torch.arange(heads, device=cache.device)[:, None]
    return gather_heads(cache, rows[None], entries)[0]


def sparse_chunk(part: Queries, cache: LayerCache, chunk: Chunk, spec: SparseSpec) -> Branches:
    """Branches of a chunk.

    Its head, where every block is selected, is dense; the rest goes in tiles of one selection
    block of absolute positions, whose queries share their forced blocks.
    """
    use_compressed, use_selected, use_window = spec.uses
    m = chunk.num_queries
    first = chunk.first_position
    dense = _count_selecting_all(spec, first, m)
    selected = part.q.new_empty(m, part.q.shape[1], cache.v.shape[-1])
    out = torch.zeros_like(selected) if use_compressed else None
    if dense and use_selected:
        selected[:dense] = recent_chunk(part.q[:dense], cache.k, cache.v, chunk, part.scale, None)
    start = 0 if use_compressed else dense
    slots = _chunk_slots(cache, chunk, spec) if start < m else None
    while start < m:
        assert slots is not None
        stop = min(m, start + spec.select_block - (first + start) % spec.select_block)
        if start < dense:
            stop = min(stop, dense)
        compressed, visible = _compressed_tile(part, slots, start, stop, first, spec)
        if out is not None and compressed.out is not None:
            out[start:stop] = _tile_out(compressed.out, stop - start)
        if use_selected and start >= dense:
            selected[start:stop] = _selected_tile(
                part.q[start:stop],
                cache,
                chunk,
                spec,
                compressed,
                visible,
                first + start,
                part.scale,
            )
        start = stop
    window = None
    if use_window:
        window = recent_chunk(
            part.q, cache.k_window, cache.v_window, chunk, part.scale, spec.window
        )
    return out, selected if use_selected else None, window


def _count_selecting_all(spec: SparseSpec, first: int, num_queries: int) -> int:
    """How many queries from the first on are sure to select every block."""
    low, high = 0, num_queries
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if spec.selects_all(first + middle - 1) else (low, middle - 1)
    return low


def _chunk_slots(cache: LayerCache, chunk: Chunk, spec: SparseSpec) -> tuple[Tensor, Tensor | None]:
    """All compressed slots of a chunk's sequence: [kv_heads, S, D] and [kv_heads, S, Dv]."""
    assert cache.k_compressed is not None
    last = chunk.first_position + chunk.num_queries
    pages = chunk.block_table[:, : -(-last // cache.page_size)]
    k = _pages_of_one(cache.k_compressed, pages)
    if not spec.uses[0]:
        return k, None
    assert cache.v_compressed is not None
    return k, _pages_of_one(cache.v_compressed, pages)


def _compressed_tile(
    part: Queries,
    slots: tuple[Tensor, Tensor | None],
    start: int,
    stop: int,
    first: int,
    spec: SparseSpec,
) -> tuple[CompressedResult, Tensor]:
    """Queries [start, stop) of a chunk as rows (query, group) per kv head: [kv_heads, M·G, …];
    visible [M, S]."""
    k, v = slots
    q = part.q_compressed[start:stop]
    m, num_heads, dim = q.shape
    heads = k.shape[0]
    group = num_heads // heads
    positions = torch.arange(first + start, first + stop, device=q.device)
    visible = visible_slots(spec, positions, k.shape[1])
    result = compressed_attention(
        q.view(m, heads, group, dim).transpose(0, 1).reshape(heads, m * group, dim),
        k,
        v,
        visible.repeat_interleave(group, 0),
        part.scale,
        part.memory,
    )
    return result, visible


def _tile_out(out: Tensor, m: int) -> Tensor:
    """[kv_heads, M·G, Dv] → [M, H, Dv]."""
    return out.unflatten(1, (m, -1)).transpose(0, 1).flatten(1, 2)


def _selected_tile(
    q: Tensor,
    cache: LayerCache,
    chunk: Chunk,
    spec: SparseSpec,
    compressed: CompressedResult,
    visible: Tensor,
    first: int,
    scale: float,
) -> Tensor:
    """Queries [M, H, D] at positions first and on read the union of their blocks, each its own."""
    m = len(q)
    positions = torch.arange(first, first + m, device=q.device)
    num_blocks = (first + m - 1) // spec.select_block + 1
    scores = block_scores(
        spec,
        compressed.logits.unflatten(1, (m, -1)),
        compressed.probs.unflatten(1, (m, -1)),
        visible,
        num_blocks,
    )
    chosen = select_blocks(spec, scores, positions).transpose(0, 1)
    mask = block_mask(chosen, num_blocks)
    union = union_of_blocks(mask)
    heads = cache.k.shape[1]
    rows = head_rows(chunk.block_table, union[None], heads, cache.page_size // spec.select_block)
    k = gather_heads(cache.k, rows, spec.select_block)[0]
    v = gather_heads(cache.v, rows, spec.select_block)[0]
    return attend_tile(q, k, v, tile_bias(mask, union, first, spec.select_block), scale)
