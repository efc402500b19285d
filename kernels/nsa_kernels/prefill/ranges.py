"""Steps and loops of softmax over runs of compressed slots, and of tokens in pages."""

import triton
import triton.language as tl

from nsa_kernels.prefill.tiles import (
    load_part,
    no_sums,
    page_offsets,
    row_logits,
    softmax_step,
)


@triton.jit
def _slots_tile(
    q: tl.tensor,
    q_rest: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    start: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    seen: tl.tensor,
    last: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    VALUES: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    SLOTS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Slots [start, start + SLOTS) for rows that see the first `seen` [rows] of all. Those at
    `last` and behind are never read."""
    lanes = tl.arange(0, SLOTS)
    slots = start + lanes
    keep = slots < last
    s = row_logits(q, q_rest, k + start * D, lanes * D, keep, MASKED, D, D_FIRST, D_REST, PRECISION)
    if MASKED:
        visible = (slots[None, :] < seen[:, None]) & (slots >= FIRST_SLOT)[None, :]
        s = tl.where(visible, s, float("-inf"))
    values = s
    if VALUES:
        values = load_part(v + start * DV, lanes * DV, keep, MASKED, 0, DV_PADDED, DV).to(q.dtype)
    return softmax_step(s, values, top, total, acc, scale, MASKED, VALUES, False, PRECISION)


@triton.jit
def slots_sums(
    q: tl.tensor,
    q_rest: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_memory: tl.tensor,
    v_memory: tl.tensor,
    seen: tl.tensor,
    seen_by_all: tl.tensor,
    last: tl.tensor,
    scale: tl.tensor,
    MEMORY: tl.constexpr,
    MEMORY_PADDED: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    VALUES: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    SLOTS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Sums over memory and slots [FIRST_SLOT, seen) of each row; all rows see `seen_by_all`, and
    none sees `last` or what is behind."""
    top, total, acc = no_sums(q.shape[0], DV_PADDED, False)
    # Tiles before HEAD are masked, for the sake of those slots that do not exist.
    HEAD: tl.constexpr = (FIRST_SLOT + SLOTS - 1) // SLOTS * SLOTS
    if MEMORY > 0:
        lanes = tl.arange(0, MEMORY_PADDED)
        exists = lanes < MEMORY
        s = row_logits(q, q_rest, k_memory, lanes * D, exists, True, D, D_FIRST, D_REST, PRECISION)
        s = tl.where(exists[None, :], s, float("-inf"))
        values = s
        if VALUES:
            values = load_part(v_memory, lanes * DV, exists, True, 0, DV_PADDED, DV).to(q.dtype)
        top, total, acc = softmax_step(
            s, values, top, total, acc, scale, True, VALUES, False, PRECISION
        )
    if HEAD > 0:
        for start in tl.range(0, tl.minimum(HEAD, last), SLOTS):
            top, total, acc = _slots_tile(
                q, q_rest, top, total, acc, start, k, v, seen, last, scale, True,
                FIRST_SLOT, VALUES, D, D_FIRST, D_REST, DV, DV_PADDED, SLOTS, PRECISION,
            )  # fmt: skip
    unmasked = tl.maximum(seen_by_all // SLOTS * SLOTS, HEAD)
    for start in tl.range(HEAD, unmasked, SLOTS):
        top, total, acc = _slots_tile(
            q, q_rest, top, total, acc, start, k, v, seen, last, scale, False,
            FIRST_SLOT, VALUES, D, D_FIRST, D_REST, DV, DV_PADDED, SLOTS, PRECISION,
        )  # fmt: skip
    for start in tl.range(unmasked, last, SLOTS):
        top, total, acc = _slots_tile(
            q, q_rest, top, total, acc, start, k, v, seen, last, scale, True,
            FIRST_SLOT, VALUES, D, D_FIRST, D_REST, DV, DV_PADDED, SLOTS, PRECISION,
        )  # fmt: skip
    return top, total, acc


@triton.jit
def _keys_tile(
    q: tl.tensor,
    q_rest: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    start: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    table: tl.tensor,
    positions: tl.tensor,
    last: tl.tensor,
    kv_head: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
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
) -> tl.tensor:
    """Tokens [start, start + KEYS) of the pages. MASKED: only those that a row's position sees, the
    last WINDOW of them (0: all), and none at `last` or behind it."""
    keys = start + tl.arange(0, KEYS)
    keep = keys < last
    rows = page_offsets(table, start, last, kv_head, KV_HEADS, PAGE, KEYS)
    s = row_logits(q, q_rest, k, rows * D, keep, MASKED, D, D_FIRST, D_REST, PRECISION)
    if MASKED:
        age = positions[:, None] - keys[None, :]
        if WINDOW > 0:
            s = tl.where(age.to(tl.uint32, bitcast=True) < WINDOW, s, float("-inf"))
        else:
            s = tl.where(age >= 0, s, float("-inf"))
    values = load_part(v, rows * DV, keep, MASKED, 0, DV_PADDED, DV).to(q.dtype)
    return softmax_step(s, values, top, total, acc, scale, MASKED, True, False, PRECISION)


@triton.jit
def keys_sums(
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
) -> tl.tensor:
    """Sums over the keys at a row's position and before it, the last WINDOW of them (0: all).
    Positions are in [start, last), but for those of rows that nobody reads."""
    top, total, acc = no_sums(q.shape[0], DV_PADDED, False)
    low = 0
    whole = 0  # keys from here on are seen by all rows, up to their own
    if WINDOW > 0:
        low = tl.maximum(start - WINDOW + 1, 0) // KEYS * KEYS
        whole = tl.maximum(last - WINDOW + KEYS - 1, 0) // KEYS * KEYS
    own = start // KEYS * KEYS
    whole = tl.minimum(whole, own)
    if WINDOW > 0:
        for at in tl.range(low, whole, KEYS):
            top, total, acc = _keys_tile(
                q, q_rest, top, total, acc, at, k, v, table, positions, last, kv_head, scale, True,
                WINDOW, D, D_FIRST, D_REST, DV, DV_PADDED, KV_HEADS, PAGE, KEYS,
                PRECISION,
            )  # fmt: skip
    for at in tl.range(whole, own, KEYS):
        top, total, acc = _keys_tile(
            q, q_rest, top, total, acc, at, k, v, table, positions, last, kv_head, scale, False,
            WINDOW, D, D_FIRST, D_REST, DV, DV_PADDED, KV_HEADS, PAGE, KEYS,
            PRECISION,
        )  # fmt: skip
    for at in tl.range(own, last, KEYS):
        top, total, acc = _keys_tile(
            q, q_rest, top, total, acc, at, k, v, table, positions, last, kv_head, scale, True,
            WINDOW, D, D_FIRST, D_REST, DV, DV_PADDED, KV_HEADS, PAGE, KEYS, PRECISION,
        )  # fmt: skip
    return top, total, acc
