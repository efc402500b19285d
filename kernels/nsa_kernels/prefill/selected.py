"""The selected branch: tiles of neighbouring queries over the union of their blocks.

Neighbours choose mostly the same blocks, so a tile reads each once; bits say which queries it is
for. A block that a query did not choose leaves its sums as they are, to the last bit.
"""

from typing import Any

import triton
import triton.language as tl

from nsa_kernels.prefill.plan import Slab
from nsa_kernels.prefill.select import TileLists
from nsa_kernels.prefill.sizes import LOG2_E, LayerSizes
from nsa_kernels.prefill.tiles import (
    deliver,
    gate_of,
    load_part,
    next_power_of_2,
    row_logits,
    softmax_end,
    softmax_step,
)
from nsa_kernels.prefill.work import PrefillWork


@triton.jit(do_not_specialize=["capacity", "first_tile", "dense_end"])
def _selected_kernel(
    out: tl.tensor,
    q: tl.tensor,
    gates: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    counts: tl.tensor,
    list_blocks: tl.tensor,
    list_places: tl.tensor,
    list_queries: tl.tensor,
    tiles: tl.tensor,
    chunks: tl.tensor,
    capacity: tl.tensor,
    first_tile: tl.tensor,
    dense_end: tl.tensor,
    scale: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    gate_token: tl.tensor,
    gate_head: tl.tensor,
    gate_branch: tl.tensor,
    COMPUTE: tl.constexpr,
    ADD: tl.constexpr,
    LOGITS: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    BLOCK_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    SUBTILE: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    PER_STEP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    PER_TILE: tl.constexpr = QUERIES // SUBTILE
    PER_PAGE: tl.constexpr = PAGE // SELECT_BLOCK
    KEYS: tl.constexpr = PER_STEP * BLOCK_PADDED
    kv_head = tl.program_id(1)
    tile = first_tile + tl.program_id(0) // PER_TILE
    chunk = tl.load(tiles + 2 * tile)
    start = tl.load(tiles + 2 * tile + 1) + tl.program_id(0) % PER_TILE * SUBTILE
    chunk_first = tl.load(chunks + 4 * chunk)
    first = tl.maximum(tl.maximum(start, chunk_first), dense_end)
    last = tl.minimum(start + SUBTILE, tl.load(chunks + 4 * chunk + 1))
    if first >= last:
        return

    rows = tl.arange(0, ROWS)
    query = rows // GROUP_PADDED
    positions = start + query
    in_group = rows % GROUP_PADDED
    keep = (positions >= first) & (positions < last) & (in_group < GROUP)
    token = (tl.load(chunks + 4 * chunk + 2) + positions - chunk_first).to(tl.int64)
    head = kv_head * GROUP + in_group
    at = token * q_token + head * q_head
    qt = load_part(q, at, keep, True, 0, D_FIRST, D).to(COMPUTE)
    qt_rest = qt
    if D_REST > 0:
        qt_rest = load_part(q, at, keep, True, D_FIRST, D_REST, D).to(COMPUTE)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DV_PADDED], tl.float32)
    count = tl.load(counts + tl.program_id(0) * KV_HEADS + kv_head)
    base = (tl.program_id(0).to(tl.int64) * KV_HEADS + kv_head) * capacity
    lanes = tl.arange(0, KEYS)
    within = lanes % BLOCK_PADDED
    for step in tl.range(0, tl.cdiv(count, PER_STEP)):
        if PER_STEP == 1:
            block = tl.load(list_blocks + base + step)
            place = tl.load(list_places + base + step).to(tl.int64)
            bits = tl.load(list_queries + base + step)
            keys = block * SELECT_BLOCK + within
            page_row = ((place // PER_PAGE) * KV_HEADS + kv_head) * PAGE
            cache_rows = page_row + (place % PER_PAGE) * SELECT_BLOCK + within
            reads = (bits >> query) & 1
            limit = tl.where(reads != 0, positions, -1)
            visible = keys[None, :] <= limit[:, None]
            keep_keys = keys < last
        else:
            entry = step * PER_STEP + lanes // BLOCK_PADDED
            exists = entry < count
            block = tl.load(list_blocks + base + entry, mask=exists, other=0)
            place = tl.load(list_places + base + entry, mask=exists, other=0).to(tl.int64)
            bits = tl.load(list_queries + base + entry, mask=exists, other=0)
            keys = block * SELECT_BLOCK + within
            page_row = ((place // PER_PAGE) * KV_HEADS + kv_head) * PAGE
            cache_rows = page_row + (place % PER_PAGE) * SELECT_BLOCK + within
            reads = (bits[None, :] >> query[:, None]) & 1
            visible = (reads != 0) & (keys[None, :] <= positions[:, None])
            keep_keys = exists & (keys < last)
        if BLOCK_PADDED != SELECT_BLOCK:
            keep_keys = keep_keys & (within < SELECT_BLOCK)
            visible = visible & (within < SELECT_BLOCK)[None, :]
        s = row_logits(
            qt, qt_rest, k_cache, cache_rows * D, keep_keys, True, D, D_FIRST, D_REST, PRECISION
        )
        s = tl.where(visible, s, float("-inf"))
        v = load_part(v_cache, cache_rows * DV, keep_keys, True, 0, DV_PADDED, DV).to(COMPUTE)
        top, total, acc = softmax_step(s, v, top, total, acc, scale, True, True, PRECISION)

    gate_at = token * gate_token + head * gate_head + gate_branch
    mixed = softmax_end(total, acc) * gate_of(gates, gate_at, keep, True, LOGITS)[:, None]
    deliver(out, token * out_token + head * out_head, keep, mixed, ADD, DV)


def attend_selected(work: PrefillWork, lists: TileLists, slab: Slab, add: bool) -> None:
    """The gated selected branch of a slab's queries into `work.out`; `add`: on top of it."""
    sizes = work.sizes
    plan, tuning = sizes.plan, sizes.heads.tuning
    _selected_kernel[lists.counts.shape](
        work.out,
        work.q,
        work.gates,
        work.cache.k,
        work.cache.v,
        lists.counts,
        lists.blocks,
        lists.places,
        lists.queries,
        plan.scores.tiles,
        plan.chunks,
        lists.blocks.shape[-1],
        slab.start,
        sizes.dense_end,
        work.scale * LOG2_E,
        *work.out.stride()[:2],
        *work.q.stride()[:2],
        *work.gate_strides,
        ADD=add,
        LOGITS=work.gate_logits,
        **sizes.constants("selected", _constants),
        num_warps=tuning.selected_warps,
        num_stages=tuning.selected_stages,
    )


def _constants(sizes: LayerSizes) -> dict[str, Any]:
    heads, block = sizes.heads, sizes.spec.select_block
    padded = next_power_of_2(block)
    return {
        **heads.constants,
        "SELECT_BLOCK": block,
        "BLOCK_PADDED": padded,
        "QUERIES": heads.score_queries,
        "SUBTILE": heads.selected_queries,
        "ROWS": max(16, heads.selected_queries * heads.group_padded),
        "DV": heads.value_dim,
        "DV_PADDED": heads.value_padded,
        "PAGE": heads.page_size,
        "PER_STEP": max(1, max(16, heads.tuning.selected_keys) // padded),
    }
