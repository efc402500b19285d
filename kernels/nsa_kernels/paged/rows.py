"""Single queries over paged caches: each reads a block list of its own."""

import torch
from torch import Tensor

from nsa_kernels.attend.reference import attend_rows, block_list
from nsa_kernels.cache import LayerCache
from nsa_kernels.compressed.reference import (
    CompressedResult,
    compressed_attention,
    visible_slots,
)
from nsa_kernels.geometry import gather_heads, head_rows
from nsa_kernels.metadata import RowGroup
from nsa_kernels.paged.queries import Branches, Queries
from nsa_kernels.select.reference import block_scores, select_blocks
from nsa_kernels.spec import SparseSpec


def recent_rows(
    q: Tensor, k: Tensor, v: Tensor, group: RowGroup, scale: float, window: int | None
) -> Tensor:
    page_size = k.shape[2]
    keys = group.recent(window, page_size, k.shape[1], page_size)
    return attend_rows(q, k, v, keys, scale)


def sparse_rows(queries: Queries, cache: LayerCache, group: RowGroup, spec: SparseSpec) -> Branches:
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
            selected = recent_rows(queries.q, cache.k, cache.v, group, queries.scale, None)
        else:
            selected = _selected_rows(queries, cache, group, spec, compressed, visible)
    window = None
    if use_window:
        window = recent_rows(
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
    heads = cache.k.shape[1]
    chosen = _chosen(heads, group, spec, compressed, visible)
    keys = block_list(
        group.block_table, chosen, group.positions, heads, spec.select_block, cache.page_size
    )
    return attend_rows(queries.q, cache.k, cache.v, keys, queries.scale)


def _chosen(
    heads: int,
    group: RowGroup,
    spec: SparseSpec,
    compressed: CompressedResult,
    visible: Tensor,
) -> Tensor:
    """Blocks that each query reads: ids [N, kv_heads, K] ascending, −1 behind the last."""
    n = len(visible)
    scores = block_scores(
        spec,
        compressed.logits.unflatten(0, (n, heads)),
        compressed.probs.unflatten(0, (n, heads)),
        visible[:, None],
        group.last_position // spec.select_block + 1,
    )
    return select_blocks(spec, scores, group.positions[:, None])


def chosen_blocks(
    queries: Queries, cache: LayerCache, group: RowGroup, spec: SparseSpec
) -> list[list[list[int]]]:
    """Blocks that the selected branch of `sparse_rows` reads, of each query and kv head."""
    heads = cache.k.shape[1]
    if spec.selects_all(group.last_position):
        last = (group.positions // spec.select_block).tolist()
        return [[list(range(block + 1))] * heads for block in last]
    chosen = _chosen(heads, group, spec, *_compressed_rows(queries, cache, group, spec))
    return [[[i for i in ids if i >= 0] for ids in each] for each in chosen.tolist()]
