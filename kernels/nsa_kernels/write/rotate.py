"""Norm, rotate and write a step's queries, keys and values, and complete the slots of single
queries: one launch for T tokens."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.spec import SparseSpec
from nsa_kernels.write.averages import Average, Averages, RowSlots, rotate_pairs
from nsa_kernels.write.slots import (
    average_pointers,
    average_switches,
    heads_per_program,
    key_slot,
    value_slot,
)

TILE = 1024
"""Elements of one program."""
WARPS = 4

_NO_PHI = Averages(
    SparseSpec(
        compress_block=1,
        compress_stride=1,
        select_block=1,
        num_selected=1,
        window=1,
        first_slot=0,
    ),
    Average(),
    Average(),
)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm of every query and key head before it is rotated."""

    query: Tensor
    """[D]"""
    key: Tensor
    """[D]"""
    eps: float


@dataclass(frozen=True, slots=True)
class OwnBranches:
    """Keys and values [T, kv_heads, dim] of branches that have a projection of their own."""

    k_window: Tensor
    v_window: Tensor
    k_phi: Tensor
    v_phi: Tensor
    rotate_phi: bool
    """Whether φ reads rotated keys."""


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor | None,
    token_rows: Tensor,
    cache: LayerCache,
    *,
    interleaved: bool = False,
    norm: HeadNorm | None = None,
    raw_queries: Tensor | None = None,
    own: OwnBranches | None = None,
    slots: RowSlots | None = None,
) -> Tensor:
    """Rotated queries [T, H, D]; keys and values go to their places in the cache.

    q [T, H, D], k [T, kv_heads, D], v [T, kv_heads, Dv]: views of whatever token stride, the heads
    of a token side by side. cos_sin float32 holds cos of every pair, then sin: [positions, D], of
    which `positions` [T] takes rows, or one row for each token, with `positions` None. token_rows
    [T] int64 is page · P + offset; −1 writes nothing. `raw_queries` [T, H, D] takes the queries
    before rotation, which the norm alone makes another tensor than q. Where φ's keys are paged
    apart (and not `own`), they get the keys before rotation. `slots` completes the slots of the
    first tokens, each of a sequence of its own, whose older tokens are in the pages.
    """
    num_tokens, num_heads, dim = q.shape
    kv_heads, value_dim = v.shape[1:]
    out = torch.empty((num_tokens, num_heads, dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0:
        return out
    for tensor in (q, k, v):
        assert tensor.stride()[1:] == (tensor.shape[2], 1), "heads of a token lie side by side"
    assert cos_sin.is_contiguous()
    assert cos_sin.shape[1] == dim
    assert raw_queries is None or raw_queries.is_contiguous()
    phi = _NO_PHI if slots is None else slots.phi
    assert phi.keys.cos_sin is None or phi.keys.interleaved == interleaved
    slot_keys = cache.k if cache.k_compressed is None else cache.k_compressed
    slot_values = cache.v if cache.v_compressed is None else cache.v_compressed
    q_heads = heads_per_program(num_heads, dim, TILE)
    k_heads = heads_per_program(kv_heads, dim, TILE)
    v_heads = heads_per_program(kv_heads, value_dim, TILE)
    k_jobs, v_jobs = triton.cdiv(kv_heads, k_heads), triton.cdiv(kv_heads, v_heads)
    q_jobs = triton.cdiv(num_heads, q_heads)
    branches = 1 if own is None else 3
    others = (k, v, k, v) if own is None else (own.k_window, own.v_window, own.k_phi, own.v_phi)
    table = None if slots is None else slots.rows.block_table
    _write_kernel[(num_tokens, q_jobs + branches * (k_jobs + v_jobs))](
        q,
        k,
        v,
        *others,
        *(t.stride(0) for t in (q, k, v, *others)),
        cos_sin,
        token_rows if positions is None else positions,
        token_rows,
        q if norm is None else norm.query,
        k if norm is None else norm.key,
        0.0 if norm is None else norm.eps,
        out,
        out if raw_queries is None else raw_queries,
        cache.k,
        cache.v,
        cache.k_window,
        cache.v_window,
        cache.phi_k,
        cache.phi_v,
        slot_keys,
        slot_values,
        token_rows if table is None else table,
        0 if table is None else table.stride(0),
        token_rows if slots is None else slots.rows.positions,
        0 if slots is None else slots.rows.num_rows,
        *average_pointers(phi.keys, cos_sin),
        *average_pointers(phi.values, cos_sin)[:2],
        POSITIONS=positions is not None,
        INTERLEAVED=interleaved,
        NORM=norm is not None,
        KEEP_RAW=raw_queries is not None,
        PHI_APART=own is None and cache.phi_k is not cache.k,
        OWN=own is not None,
        ROTATE_PHI=own is not None and own.rotate_phi,
        H=num_heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        VALUE_DIM=value_dim,
        Q_HEADS=q_heads,
        K_HEADS=k_heads,
        V_HEADS=v_heads,
        Q_JOBS=q_jobs,
        K_JOBS=k_jobs,
        V_JOBS=v_jobs,
        HALF_TILE=triton.next_power_of_2(dim // 2),
        VALUE_TILE=triton.next_power_of_2(value_dim),
        PAGE=cache.page_size,
        SLOTS=slots is not None,
        VALUE_SLOTS=slots is not None and cache.v_compressed is not None,
        FIRST_SLOT=phi.spec.first_slot,
        BLOCK=phi.spec.compress_block,
        STRIDE=phi.spec.compress_stride,
        **average_switches(phi),
        num_warps=WARPS,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _write_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_window: tl.tensor,
    v_window: tl.tensor,
    k_phi: tl.tensor,
    v_phi: tl.tensor,
    q_stride: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    k_window_stride: tl.tensor,
    v_window_stride: tl.tensor,
    k_phi_stride: tl.tensor,
    v_phi_stride: tl.tensor,
    cos_sin: tl.tensor,
    positions: tl.tensor,
    token_rows: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: tl.tensor,
    out: tl.tensor,
    raw_queries: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    k_window_cache: tl.tensor,
    v_window_cache: tl.tensor,
    k_phi_cache: tl.tensor,
    v_phi_cache: tl.tensor,
    k_compressed: tl.tensor,
    v_compressed: tl.tensor,
    block_table: tl.tensor,
    table_stride: tl.tensor,
    row_positions: tl.tensor,
    num_rows: tl.tensor,
    k_phi_weights: tl.tensor,
    k_phi_bias: tl.tensor,
    slot_cos_sin: tl.tensor,
    v_phi_weights: tl.tensor,
    v_phi_bias: tl.tensor,
    POSITIONS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    KEEP_RAW: tl.constexpr,
    PHI_APART: tl.constexpr,
    OWN: tl.constexpr,
    ROTATE_PHI: tl.constexpr,
    H: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    V_HEADS: tl.constexpr,
    Q_JOBS: tl.constexpr,
    K_JOBS: tl.constexpr,
    V_JOBS: tl.constexpr,
    HALF_TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    PAGE: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    K_WEIGHTED: tl.constexpr,
    K_BIASED: tl.constexpr,
    V_WEIGHTED: tl.constexpr,
    V_BIASED: tl.constexpr,
    ROTATE_SLOT: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    job = tl.program_id(1)
    place = tl.load(token_rows + token)
    slot = -1
    if SLOTS:
        end = tl.load(row_positions + token, mask=token < num_rows, other=-1).to(tl.int32) + 1
        slot = tl.where(end % STRIDE == 0, end // STRIDE - 1, -1)
    table = block_table + token * table_stride

    if job < Q_JOBS:
        heads = job * Q_HEADS + tl.arange(0, Q_HEADS)
        cos, sin = _rotation(cos_sin, positions, token, DIM // 2, HALF_TILE, POSITIONS)
        a, b, first, second, mask = _pair_tiles(
            q + token * q_stride, heads, H, q_weight, eps, DIM, HALF_TILE, INTERLEAVED, NORM
        )
        base = (token * H + heads)[:, None] * DIM
        if KEEP_RAW:
            _store_pairs(raw_queries + base, first, second, a, b, mask)
        a, b = rotate_pairs(a, b, cos, sin)
        _store_pairs(out + base, first, second, a, b, mask)
    elif place >= 0:
        kind = job - Q_JOBS
        branch = 0
        if OWN:
            branch = kind // (K_JOBS + V_JOBS)
            kind %= K_JOBS + V_JOBS
        completes = (slot >= FIRST_SLOT) & (branch == (2 if OWN else 0))
        if kind < K_JOBS:
            source = k + token * k_stride
            target = k_cache
            if OWN:
                if branch == 1:
                    source = k_window + token * k_window_stride
                    target = k_window_cache
                elif branch == 2:
                    source = k_phi + token * k_phi_stride
                    target = k_phi_cache
            cos, sin = _rotation(cos_sin, positions, token, DIM // 2, HALF_TILE, POSITIONS)
            _write_keys(
                source,
                target,
                k_phi_cache,
                k_compressed,
                table,
                k_weight,
                eps,
                cos,
                sin,
                k_phi_weights,
                k_phi_bias,
                slot_cos_sin,
                place,
                slot,
                completes,
                branch == 2,
                kind * K_HEADS + tl.arange(0, K_HEADS),
                KV_HEADS,
                DIM,
                HALF_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                INTERLEAVED,
                NORM,
                PHI_APART,
                OWN and not ROTATE_PHI,
                SLOTS,
                K_WEIGHTED,
                K_BIASED,
                ROTATE_SLOT,
            )
        else:
            source = v + token * v_stride
            target = v_cache
            if OWN:
                if branch == 1:
                    source = v_window + token * v_window_stride
                    target = v_window_cache
                elif branch == 2:
                    source = v_phi + token * v_phi_stride
                    target = v_phi_cache
            _write_values(
                source,
                target,
                v_phi_cache,
                v_compressed,
                table,
                v_phi_weights,
                v_phi_bias,
                place,
                slot,
                completes,
                (kind - K_JOBS) * V_HEADS + tl.arange(0, V_HEADS),
                KV_HEADS,
                VALUE_DIM,
                VALUE_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                VALUE_SLOTS,
                V_WEIGHTED,
                V_BIASED,
            )


@triton.jit
def _write_keys(
    source: tl.tensor,
    target: tl.tensor,
    phi_cache: tl.tensor,
    k_compressed: tl.tensor,
    table: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    phi_weights: tl.tensor,
    phi_bias: tl.tensor,
    slot_cos_sin: tl.tensor,
    place: tl.tensor,
    slot: tl.tensor,
    completes: tl.tensor,
    for_phi: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF_TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    PHI_APART: tl.constexpr,
    PHI_RAW: tl.constexpr,
    SLOTS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    ROTATE_SLOT: tl.constexpr,
) -> None:
    """Some heads' keys of one token, and the slot that it completes."""
    dtype = target.dtype.element_ty
    raw_a, raw_b, first, second, mask = _pair_tiles(
        source, heads, KV_HEADS, weight, eps, DIM, HALF_TILE, INTERLEAVED, NORM
    )
    base = ((place // PAGE * KV_HEADS + heads)[:, None] * PAGE + place % PAGE) * DIM
    a, b = rotate_pairs(raw_a, raw_b, cos, sin)
    if PHI_RAW:
        a = tl.where(for_phi, raw_a, a)
        b = tl.where(for_phi, raw_b, b)
    a = a.to(dtype)
    b = b.to(dtype)
    _store_pairs(target + base, first, second, a, b, mask)
    if PHI_APART:
        a = raw_a.to(dtype)
        b = raw_b.to(dtype)
        _store_pairs(phi_cache + base, first, second, a, b, mask)
    if SLOTS:  # noqa: SIM102 (a constant, decided at compile time)
        if completes:
            key_slot(
                phi_cache,
                k_compressed,
                table,
                phi_weights,
                phi_bias,
                slot_cos_sin,
                a,
                b,
                slot,
                heads,
                KV_HEADS,
                DIM,
                HALF_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                True,
                WEIGHTED,
                BIASED,
                ROTATE_SLOT,
                INTERLEAVED,
            )


@triton.jit
def _write_values(
    source: tl.tensor,
    target: tl.tensor,
    phi_cache: tl.tensor,
    v_compressed: tl.tensor,
    table: tl.tensor,
    phi_weights: tl.tensor,
    phi_bias: tl.tensor,
    place: tl.tensor,
    slot: tl.tensor,
    completes: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    SLOTS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
) -> None:
    """Some heads' values of one token, and the slot that it completes."""
    columns = tl.arange(0, TILE)[None, :]
    mask = (heads[:, None] < KV_HEADS) & (columns < DIM)
    base = ((place // PAGE * KV_HEADS + heads)[:, None] * PAGE + place % PAGE) * DIM
    value = tl.load(source + heads[:, None] * DIM + columns, mask=mask, other=0.0)
    value = value.to(target.dtype.element_ty)
    tl.store(target + base + columns, value, mask=mask)
    if SLOTS:  # noqa: SIM102
        if completes:
            value_slot(
                phi_cache,
                v_compressed,
                table,
                phi_weights,
                phi_bias,
                value,
                slot,
                heads,
                KV_HEADS,
                DIM,
                TILE,
                PAGE,
                BLOCK,
                STRIDE,
                True,
                WEIGHTED,
                BIASED,
            )


@triton.jit
def _rotation(
    cos_sin: tl.tensor,
    positions: tl.tensor,
    token: tl.tensor,
    HALF: tl.constexpr,
    TILE: tl.constexpr,
    POSITIONS: tl.constexpr,
) -> tl.tensor:
    """cos and sin [1, pairs] of a token; a padding token's are those of position 0."""
    row = token
    if POSITIONS:
        row = tl.maximum(tl.load(positions + token), 0).to(tl.int64)
    pairs = tl.arange(0, TILE)
    place = cos_sin + row * (2 * HALF) + pairs
    cos = tl.load(place, mask=pairs < HALF, other=0.0)
    sin = tl.load(place + HALF, mask=pairs < HALF, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _pair_tiles(
    x: tl.tensor,
    heads: tl.tensor,
    NUM_HEADS: tl.constexpr,
    weight: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
) -> tl.tensor:
    """Both places of every pair of some heads, [heads, pairs] float32, after the norm; their
    columns and the mask."""
    pairs = tl.arange(0, TILE)
    first = pairs * 2 if INTERLEAVED else pairs
    second = first + 1 if INTERLEAVED else first + DIM // 2
    inside = pairs < DIM // 2
    mask = (heads[:, None] < NUM_HEADS) & inside[None, :]
    a = tl.load(x + heads[:, None] * DIM + first[None, :], mask=mask, other=0.0)
    b = tl.load(x + heads[:, None] * DIM + second[None, :], mask=mask, other=0.0)
    dtype = a.dtype
    a = a.to(tl.float32)
    b = b.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) * (1.0 / DIM) + eps)[:, None]
        weight_a = tl.load(weight + first, mask=inside, other=0.0).to(tl.float32)[None, :]
        weight_b = tl.load(weight + second, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Rounded where torch rounds.
        a = ((a * scale).to(dtype).to(tl.float32) * weight_a).to(dtype).to(tl.float32)
        b = ((b * scale).to(dtype).to(tl.float32) * weight_b).to(dtype).to(tl.float32)
    return a, b, first, second, mask


@triton.jit
def _store_pairs(
    x: tl.tensor, first: tl.tensor, second: tl.tensor, a: tl.tensor, b: tl.tensor, mask: tl.tensor
) -> None:
    """Both places of every pair, at x [heads, 1]."""
    tl.store(x + first[None, :], a.to(x.dtype.element_ty), mask=mask)
    tl.store(x + second[None, :], b.to(x.dtype.element_ty), mask=mask)
