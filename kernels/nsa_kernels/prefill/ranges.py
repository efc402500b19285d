"""Loops of online softmax over runs of compressed slots, and of tokens in pages."""

import triton
import triton.language as tl

from nsa_kernels.prefill.tiles import load_part, page_offsets, row_logits, softmax_step


@triton.jit
def slots_range(
    q: tl.tensor,
    q_rest: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
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
    """Slots [low, high) in tiles of SLOTS, for rows that see the first `seen` [rows] of them.
    Those at `last` and behind are never read."""
    lanes = tl.arange(0, SLOTS)
    for start in tl.range(low, high, SLOTS):
        slots = start + lanes
        keep = slots < last
        s = row_logits(
            q, q_rest, k + start * D, lanes * D, keep, MASKED, D, D_FIRST, D_REST,
            PRECISION,
        )  # fmt: skip
        if MASKED:
            visible = (slots[None, :] < seen[:, None]) & (slots >= FIRST_SLOT)[None, :]
            s = tl.where(visible, s, float("-inf"))
        values = s
        if VALUES:
            values = load_part(v + start * DV, lanes * DV, keep, MASKED, 0, DV_PADDED, DV).to(
                q.dtype
            )
        top, total, acc = softmax_step(s, values, top, total, acc, scale, MASKED, VALUES, PRECISION)
    return top, total, acc


@triton.jit
def keys_range(
    q: tl.tensor,
    q_rest: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
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
    """Tokens [low, high) of the pages in tiles of KEYS. MASKED: only those that a row's position
    sees, the last WINDOW of them (0: all), and none at `last` or behind it."""
    lanes = tl.arange(0, KEYS)
    for start in tl.range(low, high, KEYS):
        keys = start + lanes
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
        top, total, acc = softmax_step(s, values, top, total, acc, scale, MASKED, True, PRECISION)
    return top, total, acc
