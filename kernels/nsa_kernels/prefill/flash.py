"""Causal attention of tiles of neighbouring queries over what they have in common.

One kernel computes, for 128 rows (query, head of the group) of a kv head and in this order: the
compressed branch over the gathered slots; the window branch; and, for queries that select every
block, the selected branch as plain causal attention. The output is their gated sum; what is ready
waits for the rest in memory, for registers decide how much of a GPU works at once.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.prefill.gather import GatheredSlots
from nsa_kernels.prefill.ranges import keys_sums, slots_sums
from nsa_kernels.prefill.sizes import LOG2_E, Heads, LayerSizes
from nsa_kernels.prefill.tiles import (
    deliver,
    gate_of,
    load_part,
    next_power_of_2,
    softmax_end,
)
from nsa_kernels.prefill.work import PrefillWork


@triton.jit
def _keys_branch(
    out: tl.tensor,
    gates: tl.tensor,
    place: tl.tensor,
    gate_at: tl.tensor,
    keep: tl.tensor,
    q: tl.tensor,
    q_rest: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    table: tl.tensor,
    positions: tl.tensor,
    start: tl.tensor,
    last: tl.tensor,
    kv_head: tl.tensor,
    scale: tl.tensor,
    ADD: tl.constexpr,
    GATED: tl.constexpr,
    LOGITS: tl.constexpr,
    WINDOW: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """The window (WINDOW > 0) or causal attention to all keys, gated, for rows to keep."""
    _, total, acc = keys_sums(
        q, q_rest, k, v, table, positions, start, last, kv_head, scale, WINDOW, D, D_FIRST,
        D_REST, DV, DV_PADDED, KV_HEADS, PAGE, KEYS, PRECISION,
    )  # fmt: skip
    gate = gate_of(gates, gate_at, keep, GATED, LOGITS)
    deliver(out, place, keep, softmax_end(total, acc) * gate[:, None], ADD, DV)


@triton.jit(do_not_specialize=["num_slots", "table_width", "dense_end"])
def flash_kernel(
    out: tl.tensor,
    lse: tl.tensor,
    q: tl.tensor,
    q_compressed: tl.tensor,
    gates: tl.tensor,
    k_slots: tl.tensor,
    v_slots: tl.tensor,
    k_memory: tl.tensor,
    v_memory: tl.tensor,
    k_window: tl.tensor,
    v_window: tl.tensor,
    k_dense: tl.tensor,
    v_dense: tl.tensor,
    tiles: tl.tensor,
    chunks: tl.tensor,
    block_table: tl.tensor,
    num_slots: tl.tensor,
    table_width: tl.tensor,
    dense_end: tl.tensor,
    scale: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    qc_token: tl.tensor,
    qc_head: tl.tensor,
    gate_token: tl.tensor,
    gate_head: tl.tensor,
    gate_branch: tl.tensor,
    COMPUTE: tl.constexpr,
    COMPRESSED: tl.constexpr,
    VALUES: tl.constexpr,
    WINDOW: tl.constexpr,
    DENSE: tl.constexpr,
    SAME_Q: tl.constexpr,
    GATED: tl.constexpr,
    LOGITS: tl.constexpr,
    MEMORY: tl.constexpr,
    MEMORY_PADDED: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    SLOTS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    ROWS: tl.constexpr = QUERIES * GROUP_PADDED
    HEADS: tl.constexpr = KV_HEADS * GROUP
    kv_head = tl.program_id(1)
    chunk = tl.load(tiles + 2 * tl.program_id(0))
    start = tl.load(tiles + 2 * tl.program_id(0) + 1)
    first = tl.load(chunks + 4 * chunk)
    end = tl.load(chunks + 4 * chunk + 1)
    first_row = tl.load(chunks + 4 * chunk + 2)
    table = block_table + chunk.to(tl.int64) * table_width
    last = tl.minimum(start + QUERIES, end)

    rows = tl.arange(0, ROWS)
    positions = start + rows // GROUP_PADDED
    in_group = rows % GROUP_PADDED
    keep = (positions >= first) & (positions < end) & (in_group < GROUP)
    token = (first_row + positions - first).to(tl.int64)
    head = kv_head * GROUP + in_group
    gate_at = token * gate_token + head * gate_head

    place = token * out_token + head * out_head
    if COMPRESSED:
        at = token * qc_token + head * qc_head
        qc = load_part(q_compressed, at, keep, True, 0, D_FIRST, D).to(COMPUTE)
        qc_rest = qc
        if D_REST > 0:
            qc_rest = load_part(q_compressed, at, keep, True, D_FIRST, D_REST, D).to(COMPUTE)
        slot_base = tl.load(chunks + 4 * chunk + 3).to(tl.int64)
        slot_row = kv_head.to(tl.int64) * num_slots + slot_base
        seen = (positions + 1 - STRICT) // STRIDE
        seen_by_all = (start + 1 - STRICT) // STRIDE
        seen_by_last = (last - STRICT) // STRIDE
        k_first = k_slots + slot_row * D
        v_first = v_slots
        k_mem = k_memory
        v_mem = v_memory
        if VALUES:
            v_first = v_slots + slot_row * DV
        if MEMORY > 0:
            k_mem = k_memory + kv_head * MEMORY * D
            v_mem = v_memory + kv_head * MEMORY * DV
        top, total, acc = slots_sums(
            qc, qc_rest, k_first, v_first, k_mem, v_mem, seen, seen_by_all, seen_by_last, scale,
            MEMORY, MEMORY_PADDED, FIRST_SLOT, VALUES, D, D_FIRST, D_REST, DV, DV_PADDED,
            SLOTS, PRECISION,
        )  # fmt: skip
        # +inf where nothing is seen, so that exp2(s − lse) is 0.
        log_sum = tl.where(total == 0.0, float("inf"), top + tl.log2(total))
        tl.store(lse + token * HEADS + head, log_sum, mask=keep)
        if VALUES:
            gate = gate_of(gates, gate_at, keep, GATED, LOGITS)
            deliver(out, place, keep, softmax_end(total, acc) * gate[:, None], False, DV)

    if WINDOW > 0 or DENSE:
        at = token * q_token + head * q_head
        if COMPRESSED and SAME_Q:
            ql = qc
            ql_rest = qc_rest
        else:
            ql = load_part(q, at, keep, True, 0, D_FIRST, D).to(COMPUTE)
            ql_rest = ql
            if D_REST > 0:
                ql_rest = load_part(q, at, keep, True, D_FIRST, D_REST, D).to(COMPUTE)

    if WINDOW > 0:
        _keys_branch(
            out, gates, place, gate_at + 2 * gate_branch, keep, ql, ql_rest, k_window, v_window,
            table, positions, start, last, kv_head, scale, VALUES, GATED, LOGITS, WINDOW, D,
            D_FIRST, D_REST, DV, DV_PADDED, KV_HEADS, PAGE, KEYS, PRECISION,
        )  # fmt: skip

    if DENSE:  # noqa: SIM102 - decided when compiling, the other when running
        if start < dense_end:
            early = keep & (positions < dense_end)
            _keys_branch(
                out, gates, place, gate_at + gate_branch, early, ql, ql_rest, k_dense, v_dense,
                table, positions, start, last, kv_head, scale, VALUES or WINDOW > 0, GATED, LOGITS,
                0, D, D_FIRST, D_REST, DV, DV_PADDED, KV_HEADS, PAGE, KEYS, PRECISION,
            )  # fmt: skip


def attend_tiles(work: PrefillWork, slots: GatheredSlots, lse: Tensor) -> None:
    """The gated sum of the compressed, window and dense parts into `work.out`, and the log-sums of
    the compressed branch (to base 2, memory included, +inf where nothing is seen) into lse
    [T, H]. Where queries select, their part of `work.out` is still to be added."""
    sizes, cache = work.sizes, work.cache
    plan, tuning = sizes.plan, sizes.heads.tuning
    constants = sizes.constants("flash", _constants)
    if not (constants["COMPRESSED"] or constants["WINDOW"] or constants["DENSE"]):
        return
    k_memory, v_memory = work.memory or (work.q, work.q)
    num_memory = k_memory.shape[1] if work.memory else 0
    flash_kernel[(len(plan.flash), sizes.heads.kv_heads)](
        work.out,
        lse,
        work.q,
        work.q_compressed,
        work.gates,
        slots.k,
        slots.k if slots.v is None else slots.v,
        k_memory,
        v_memory,
        cache.k_window,
        cache.v_window,
        cache.k,
        cache.v,
        plan.flash.tiles,
        plan.chunks,
        plan.block_table,
        plan.num_slots,
        plan.block_table.shape[1],
        sizes.dense_end,
        work.scale * LOG2_E,
        *work.out.stride()[:2],
        *work.q.stride()[:2],
        *work.q_compressed.stride()[:2],
        *work.gate_strides,
        SAME_Q=work.q is work.q_compressed,
        GATED=True,
        LOGITS=work.gate_logits,
        MEMORY=num_memory,
        MEMORY_PADDED=max(16, next_power_of_2(max(num_memory, 1))),
        **constants,
        **flash_shape(sizes.heads),
        num_warps=tuning.flash_warps,
        num_stages=tuning.flash_stages,
        maxnreg=tuning.flash_registers,
    )


def _constants(sizes: LayerSizes) -> dict[str, Any]:
    spec, plan = sizes.spec, sizes.plan
    compressed, selected, window = spec.uses
    scored = len(plan.scores) > 0 and spec.importance != "logit_mean"
    return {
        "COMPRESSED": compressed or scored,
        "VALUES": compressed,
        "WINDOW": spec.window if window else 0,
        "DENSE": selected and plan.first_position < sizes.dense_end,
        "STRIDE": spec.compress_stride,
        "STRICT": int(spec.strict),
        "FIRST_SLOT": spec.first_slot,
    }


def flash_shape(heads: Heads) -> dict[str, Any]:
    """Compile-time sizes of `flash_kernel`."""
    return {
        **heads.constants,
        "QUERIES": heads.flash_queries,
        "DV": heads.value_dim,
        "DV_PADDED": heads.value_padded,
        "PAGE": heads.page_size,
        "SLOTS": heads.tuning.flash_slots,
        "KEYS": heads.tuning.flash_keys,
    }
