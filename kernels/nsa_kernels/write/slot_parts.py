"""One slot of some heads, within a kernel: keys, values, and where they go."""

import triton
import triton.language as tl

from nsa_kernels.write.averages import average_columns, rotate_pairs, rotation_at_start


@triton.jit
def key_slot(
    phi_k: tl.tensor,
    k_compressed: tl.tensor,
    table: tl.tensor,
    weights: tl.tensor,
    bias: tl.tensor,
    cos_sin: tl.tensor,
    newest_a: tl.tensor,
    newest_b: tl.tensor,
    slot: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF_TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_NEWEST: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    ROTATE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
) -> None:
    """Compress the keys of a slot and write them. Columns go in pairs, as rotation wants them;
    `newest_a` and `newest_b` [heads, pairs] are the last token's."""
    pairs = tl.arange(0, HALF_TILE)
    half: tl.constexpr = DIM // 2
    first = pairs * 2 if INTERLEAVED else pairs
    second = first + 1 if INTERLEAVED else first + half
    mask = (heads[:, None] < KV_HEADS) & (pairs[None, :] < half)
    a = average_columns(
        phi_k,
        table,
        weights,
        bias,
        newest_a,
        slot,
        heads,
        first,
        mask,
        KV_HEADS,
        DIM,
        PAGE,
        BLOCK,
        STRIDE,
        HAS_NEWEST,
        WEIGHTED,
        BIASED,
    )
    b = average_columns(
        phi_k,
        table,
        weights,
        bias,
        newest_b,
        slot,
        heads,
        second,
        mask,
        KV_HEADS,
        DIM,
        PAGE,
        BLOCK,
        STRIDE,
        HAS_NEWEST,
        WEIGHTED,
        BIASED,
    )
    if ROTATE:
        cos, sin = rotation_at_start(cos_sin, slot, pairs, pairs < half, half, BLOCK, STRIDE)
        a, b = rotate_pairs(a, b, cos, sin)
    place = k_compressed + slot_offsets(table, slot, heads, KV_HEADS, PAGE // STRIDE, DIM)
    tl.store(place + first[None, :], a.to(k_compressed.dtype.element_ty), mask=mask)
    tl.store(place + second[None, :], b.to(k_compressed.dtype.element_ty), mask=mask)


@triton.jit
def value_slot(
    phi_v: tl.tensor,
    v_compressed: tl.tensor,
    table: tl.tensor,
    weights: tl.tensor,
    bias: tl.tensor,
    newest: tl.tensor,
    slot: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_NEWEST: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
) -> None:
    """Compress the values of a slot and write them; `newest` [heads, columns] is the last
    token's."""
    columns = tl.arange(0, TILE)
    mask = (heads[:, None] < KV_HEADS) & (columns[None, :] < DIM)
    total = average_columns(
        phi_v,
        table,
        weights,
        bias,
        newest,
        slot,
        heads,
        columns,
        mask,
        KV_HEADS,
        DIM,
        PAGE,
        BLOCK,
        STRIDE,
        HAS_NEWEST,
        WEIGHTED,
        BIASED,
    )
    place = v_compressed + slot_offsets(table, slot, heads, KV_HEADS, PAGE // STRIDE, DIM)
    tl.store(place + columns[None, :], total.to(v_compressed.dtype.element_ty), mask=mask)


@triton.jit
def slot_offsets(
    table: tl.tensor,
    slot: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    PER_PAGE: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """[heads, 1] where a slot begins in a compressed cache."""
    page = tl.load(table + slot // PER_PAGE).to(tl.int64)
    return (((page * KV_HEADS + heads) * PER_PAGE + slot % PER_PAGE) * DIM)[:, None]
