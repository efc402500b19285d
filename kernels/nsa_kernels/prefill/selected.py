"""The selected branch: tiles of neighbouring queries over the union of their blocks.

Neighbours choose mostly the same blocks, so a tile reads each once; bits say which queries it is
for. A block that a query did not choose leaves its sums as they are, to the last bit.
"""

from typing import Any

import triton
import triton.language as tl

from nsa_kernels.prefill.plan import Slab
from nsa_kernels.prefill.select import TileLists
from nsa_kernels.prefill.sizes import LOG2_E, LayerSizes, selected_steps
from nsa_kernels.prefill.tiles import (
    deliver,
    far_off,
    fixed_top,
    gate_of,
    load_part,
    no_sums,
    row_logits,
    softmax_end,
    softmax_step,
    total_of,
)
from nsa_kernels.prefill.work import PrefillWork


@triton.jit
def _list_step(
    q: tl.tensor,
    q_rest: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    step: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    list_blocks: tl.tensor,
    list_places: tl.tensor,
    list_queries: tl.tensor,
    count: tl.tensor,
    query: tl.tensor,
    positions: tl.tensor,
    last: tl.tensor,
    kv_head: tl.tensor,
    scale: tl.tensor,
    FIRST: tl.constexpr,
    MASKED: tl.constexpr,
    FIXED: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    BLOCK_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    PER_STEP: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """The blocks of PER_STEP entries of the list, or one of a block's PARTS; not MASKED: one block,
    complete before any of the queries."""
    PER_PAGE: tl.constexpr = PAGE // SELECT_BLOCK
    lanes = tl.arange(0, PER_STEP * BLOCK_PADDED)
    within = lanes % BLOCK_PADDED
    shift = top
    if PER_STEP == 1:
        entry = step // PARTS
        within += step % PARTS * BLOCK_PADDED
        block = tl.load(list_blocks + entry)
        place = tl.load(list_places + entry).to(tl.int64)
        bits = tl.load(list_queries + entry)
        reads = (bits >> query) & 1
        keys = block * SELECT_BLOCK + within
        visible = keys[None, :] <= tl.where(reads != 0, positions, -1)[:, None]
        keep = keys < last
        if not MASKED:  # a logit less infinity weighs nothing
            shift = tl.where(reads != 0, top, float("inf"))
    else:
        entry = step * PER_STEP + lanes // BLOCK_PADDED
        exists = entry < count
        block = tl.load(list_blocks + entry, mask=exists, other=0)
        place = tl.load(list_places + entry, mask=exists, other=0).to(tl.int64)
        bits = tl.load(list_queries + entry, mask=exists, other=0)
        keys = block * SELECT_BLOCK + within
        reads = (bits[None, :] >> query[:, None]) & 1
        visible = (reads != 0) & (keys[None, :] <= positions[:, None])
        keep = exists & (keys < last)
    page_row = ((place // PER_PAGE) * KV_HEADS + kv_head) * PAGE
    rows = page_row + (place % PER_PAGE) * SELECT_BLOCK + within
    if BLOCK_PADDED * PARTS != SELECT_BLOCK:
        keep = keep & (within < SELECT_BLOCK)
        visible = visible & (within < SELECT_BLOCK)[None, :]
    s = row_logits(q, q_rest, k_cache, rows * D, keep, MASKED, D, D_FIRST, D_REST, PRECISION)
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    if FIRST:
        top = fixed_top(s, scale)
        shift = top
    v = load_part(v_cache, rows * DV, keep, MASKED, 0, DV_PADDED, DV).to(q.dtype)
    shift, total, acc = softmax_step(s, v, shift, total, acc, scale, MASKED, True, FIXED, PRECISION)
    if not FIXED:
        top = shift
    return top, total, acc


@triton.jit
def _list_sums(
    q: tl.tensor,
    q_rest: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    list_blocks: tl.tensor,
    list_places: tl.tensor,
    list_queries: tl.tensor,
    count: tl.tensor,
    query: tl.tensor,
    positions: tl.tensor,
    last: tl.tensor,
    kv_head: tl.tensor,
    scale: tl.tensor,
    FIXED: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    BLOCK_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SUBTILE: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    PER_STEP: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """(total, acc) of rows over a tile's list."""
    # The blocks of the tile's own positions are the last of the list; those before are complete.
    OWN: tl.constexpr = 1 if SELECT_BLOCK % SUBTILE == 0 else (SUBTILE - 2) // SELECT_BLOCK + 2
    PEELED: tl.constexpr = FIXED and PER_STEP == 1 and BLOCK_PADDED == SELECT_BLOCK
    top, total, acc = no_sums(q.shape[0], DV_PADDED, FIXED)
    steps = tl.cdiv(count, PER_STEP) * PARTS
    whole = 0
    if FIXED:
        for step in tl.range(tl.maximum(steps - 1, 0), steps):  # once: a loop is pipelined
            top, total, acc = _list_step(
                q, q_rest, top, total, acc, step, k_cache, v_cache, list_blocks, list_places,
                list_queries, count, query, positions, last, kv_head, scale, True, True, True,
                SELECT_BLOCK, BLOCK_PADDED, KV_HEADS, D, D_FIRST, D_REST, DV, DV_PADDED, PAGE,
                PER_STEP, PARTS, PRECISION,
            )  # fmt: skip
        steps -= 1
    if PEELED:
        whole = tl.maximum(count - OWN, 0)
        for step in tl.range(0, whole):
            top, total, acc = _list_step(
                q, q_rest, top, total, acc, step, k_cache, v_cache, list_blocks, list_places,
                list_queries, count, query, positions, last, kv_head, scale, False, False, True,
                SELECT_BLOCK, BLOCK_PADDED, KV_HEADS, D, D_FIRST, D_REST, DV, DV_PADDED, PAGE,
                PER_STEP, PARTS, PRECISION,
            )  # fmt: skip
    if OWN > 1 or not PEELED:
        for step in tl.range(whole, steps):
            top, total, acc = _list_step(
                q, q_rest, top, total, acc, step, k_cache, v_cache, list_blocks, list_places,
                list_queries, count, query, positions, last, kv_head, scale, False, True, FIXED,
                SELECT_BLOCK, BLOCK_PADDED, KV_HEADS, D, D_FIRST, D_REST, DV, DV_PADDED, PAGE,
                PER_STEP, PARTS, PRECISION,
            )  # fmt: skip
    return total_of(total, FIXED), acc


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
    PARTS: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    PER_TILE: tl.constexpr = QUERIES // SUBTILE
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

    count = tl.load(counts + tl.program_id(0) * KV_HEADS + kv_head)
    base = (tl.program_id(0).to(tl.int64) * KV_HEADS + kv_head) * capacity
    gate_at = token * gate_token + head * gate_head + gate_branch
    place = token * out_token + head * out_head
    total, acc = _list_sums(
        qt, qt_rest, k_cache, v_cache, list_blocks + base, list_places + base, list_queries + base,
        count, query, positions, last, kv_head, scale, FIXED, SELECT_BLOCK, BLOCK_PADDED, KV_HEADS,
        SUBTILE, D, D_FIRST, D_REST, DV, DV_PADDED, PAGE, PER_STEP, PARTS, PRECISION,
    )  # fmt: skip
    lost = far_off(total, acc, keep)
    mixed = softmax_end(total, acc) * gate_of(gates, gate_at, keep, True, LOGITS)[:, None]
    deliver(out, place, keep & ~(lost & FIXED), mixed, ADD, DV)
    if FIXED:  # noqa: SIM102 - decided when compiling, the other when running
        if tl.max(lost.to(tl.int32), 0) > 0:
            again_total, again = _list_sums(
                qt, qt_rest, k_cache, v_cache, list_blocks + base, list_places + base,
                list_queries + base, count, query, positions, last, kv_head, scale, False,
                SELECT_BLOCK, BLOCK_PADDED, KV_HEADS, SUBTILE, D, D_FIRST, D_REST, DV, DV_PADDED,
                PAGE, PER_STEP, PARTS, PRECISION,
            )  # fmt: skip
            again_gate = gate_of(gates, gate_at, lost, True, LOGITS)
            deliver(
                out, place, lost, softmax_end(again_total, again) * again_gate[:, None], ADD, DV
            )


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
        num_stages=selected_steps(sizes.heads, sizes.spec.select_block).stages,
        maxnreg=tuning.selected_registers,
    )


def _constants(sizes: LayerSizes) -> dict[str, Any]:
    heads, block = sizes.heads, sizes.spec.select_block
    steps = selected_steps(heads, block)
    return {
        **heads.constants,
        "SELECT_BLOCK": block,
        "BLOCK_PADDED": steps.keys // steps.blocks,
        "QUERIES": heads.score_queries,
        "SUBTILE": heads.selected_queries,
        "ROWS": heads.selected_rows,
        "DV": heads.value_dim,
        "DV_PADDED": heads.value_padded,
        "PAGE": heads.page_size,
        "FIXED": heads.fixed_top and steps.parts == 1,
        "PER_STEP": steps.blocks,
        "PARTS": steps.parts,
    }
