"""The two kinds of attention layer over paged caches, in plain torch.

Both take the queries of a whole step, single queries and chunks mixed, after the step's keys,
values and compressed slots were written, and return what each branch read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.attend.reference import (
    attend_rows,
    attend_tile,
    block_list,
    tile_bias,
    union_of_blocks,
)
from nsa_kernels.cache import LayerCache
from nsa_kernels.compressed.reference import (
    CompressedResult,
    compressed_attention,
    visible_slots,
)
from nsa_kernels.geometry import gather_heads, head_rows
from nsa_kernels.metadata import AttentionMetadata, Chunk, RowGroup
from nsa_kernels.select.reference import block_mask, block_scores, select_blocks
from nsa_kernels.spec import SparseSpec

DENSE_TILE = 128
"""Queries that share a run of keys: wide enough for the matrix units, narrow enough to skip most
of the keys that none of them sees."""

Branches = tuple[Tensor | None, Tensor | None, Tensor | None]
"""(compressed, selected, window), each [T, H, Dv], None where the branch cannot contribute."""


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of a step: [T, H, D], those of the compressed branch perhaps not rotated."""

    q: Tensor
    q_compressed: Tensor
    scale: float
    memory: tuple[Tensor, Tensor] | None = None
    """Learned compressed tokens ([kv_heads, m, D], [kv_heads, m, Dv])."""

    def part(self, start: int, stop: int) -> "Queries":
        """Queries [start, stop) of the step."""
        return Queries(self.q[start:stop], self.q_compressed[start:stop], self.scale, self.memory)


def dense_attention(q: Tensor, cache: LayerCache, meta: AttentionMetadata, scale: float) -> Tensor:
    """Causal attention over all keys: q [T, H, D] → [T, H, Dv]."""
    parts = [
        _recent_rows(q[group.start : group.stop], cache.k, cache.v, group, scale, None)
        for group in meta.groups
    ]
    parts += [
        _recent_chunk(q[chunk.start : chunk.stop], cache.k, cache.v, chunk, scale, None)
        for chunk in meta.chunks
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def sparse_attention(
    queries: Queries, cache: LayerCache, meta: AttentionMetadata, spec: SparseSpec
) -> Branches:
    """The three branches of NSA, before their gates."""
    parts = [
        _sparse_rows(queries.part(group.start, group.stop), cache, group, spec)
        for group in meta.groups
    ]
    parts += [
        _sparse_chunk(queries.part(chunk.start, chunk.stop), cache, chunk, spec)
        for chunk in meta.chunks
    ]
    if len(parts) == 1:
        return parts[0]
    compressed, selected, window = (_joined(branch) for branch in zip(*parts, strict=True))
    return compressed, selected, window


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One branch of all tokens, in the step's order."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _recent_rows(
    q: Tensor, k: Tensor, v: Tensor, group: RowGroup, scale: float, window: int | None
) -> Tensor:
    page_size = k.shape[2]
    keys = group.recent(window, page_size, k.shape[1], page_size)
    return attend_rows(q, k, v, keys, scale)


def _recent_chunk(
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


def _sparse_rows(
    queries: Queries, cache: LayerCache, group: RowGroup, spec: SparseSpec
) -> Branches:
    """Branches of single queries, each [N, H, Dv]."""
    compressed: CompressedResult | None = None
    selects_all = spec.selects_all(group.last_position)
    use_compressed, use_selected, use_window = spec.uses
    visible = None
    if use_compressed or (use_selected and not selects_all):
        compressed, visible = _compressed_rows(queries, cache, group, spec)
    selected = None
    if use_selected:
        if compressed is None or visible is None or selects_all:
            selected = _recent_rows(queries.q, cache.k, cache.v, group, queries.scale, None)
        else:
            selected = _selected_rows(queries, cache, group, spec, compressed, visible)
    window = None
    if use_window:
        window = _recent_rows(
            queries.q, cache.k_window, cache.v_window, group, queries.scale, spec.window
        )
    out = None
    if use_compressed and compressed is not None and compressed.out is not None:
        out = compressed.out.reshape(*queries.q.shape[:2], -1)
    return out, selected, window


def _compressed_rows(
    queries: Queries, cache: LayerCache, group: RowGroup, spec: SparseSpec
) -> tuple[CompressedResult, Tensor]:
    """Compressed attention with kv heads folded into the batch: [N·kv_heads, G, …]; visible
    [N, S]."""
    assert cache.k_compressed is not None
    q = queries.q_compressed
    n, num_heads, dim = q.shape
    heads = cache.k_compressed.shape[1]
    pages = -(-(group.last_position + 1) // cache.page_size)
    rows = head_rows(
        group.block_table,
        torch.arange(pages, device=q.device).expand(n, heads, pages),
        heads,
        1,
    )
    per_page = cache.k_compressed.shape[2]
    k = gather_heads(cache.k_compressed, rows, per_page).flatten(0, 1)
    v = None
    if spec.uses[0]:
        assert cache.v_compressed is not None
        v = gather_heads(cache.v_compressed, rows, per_page).flatten(0, 1)
    visible = visible_slots(spec, group.positions, pages * per_page)
    memory = None
    if queries.memory is not None:
        mk, mv = queries.memory
        memory = (mk.repeat(n, 1, 1), mv.repeat(n, 1, 1))
    result = compressed_attention(
        q.reshape(n * heads, num_heads // heads, dim),
        k,
        v,
        visible.repeat_interleave(heads, 0)[:, None],
        queries.scale,
        memory,
    )
    return result, visible


def _selected_rows(
    queries: Queries,
    cache: LayerCache,
    group: RowGroup,
    spec: SparseSpec,
    compressed: CompressedResult,
    visible: Tensor,
) -> Tensor:
    n = len(queries.q)
    heads = cache.k.shape[1]
    scores = block_scores(
        spec,
        compressed.logits.unflatten(0, (n, heads)),
        compressed.probs.unflatten(0, (n, heads)),
        visible[:, None],
        group.last_position // spec.select_block + 1,
    )
    chosen = select_blocks(spec, scores, group.positions[:, None])
    keys = block_list(
        group.block_table, chosen, group.positions, heads, spec.select_block, cache.page_size
    )
    return attend_rows(queries.q, cache.k, cache.v, keys, queries.scale)


def _sparse_chunk(part: Queries, cache: LayerCache, chunk: Chunk, spec: SparseSpec) -> Branches:
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
        selected[:dense] = _recent_chunk(part.q[:dense], cache.k, cache.v, chunk, part.scale, None)
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
        window = _recent_chunk(
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
