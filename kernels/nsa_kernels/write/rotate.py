"""Norm, rotate and write a step's queries, keys and values, and complete the slots of single
queries: one launch for T tokens."""

from dataclasses import dataclass
from typing import Any

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
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _write_kernel(
    q: Any,
    k: Any,
    v: Any,
    k_window: Any,
    v_window: Any,
    k_phi: Any,
    v_phi: Any,
    q_stride: Any,
    k_stride: Any,
    v_stride: Any,
    k_window_stride: Any,
    v_window_stride: Any,
    k_phi_stride: Any,
    v_phi_stride: Any,
    cos_sin: Any,
    positions: Any,
    token_rows: Any,
    q_weight: Any,
    k_weight: Any,
    eps: Any,
    out: Any,
    raw_queries: Any,
    k_cache: Any,
    v_cache: Any,
    k_window_cache: Any,
    v_window_cache: Any,
    k_phi_cache: Any,
    v_phi_cache: Any,
    k_compressed: Any,
    v_compressed: Any,
    block_table: Any,
    table_stride: Any,
    row_positions: Any,
    num_rows: Any,
    k_phi_weights: Any,
    k_phi_bias: Any,
    slot_cos_sin: Any,
    v_phi_weights: Any,
    v_phi_bias: Any,
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
    half: tl.constexpr = DIM // 2
    pairs = tl.arange(0, HALF_TILE)
    inside = pairs < half
    first = pairs * 2 if INTERLEAVED else pairs
    second = first + 1 if INTERLEAVED else first + half
    columns = tl.arange(0, VALUE_TILE)

    place = tl.load(token_rows + token)
    slot = -1
    if SLOTS:
        end = tl.load(row_positions + token, mask=token < num_rows, other=-1).to(tl.int32) + 1
        slot = tl.where(end % STRIDE == 0, end // STRIDE - 1, -1)
    table = block_table + token * table_stride

    if job < Q_JOBS:
        heads = job * Q_HEADS + tl.arange(0, Q_HEADS)
        mask = (heads[:, None] < H) & inside[None, :]
        cos, sin = _rotation(cos_sin, positions, token, pairs, inside, half, POSITIONS)
        a, b = _pair_tiles(
            q + token * q_stride, heads, first, second, mask, q_weight, eps, DIM, NORM
        )
        base = (token * H + heads)[:, None] * DIM
        if KEEP_RAW:
            _store_pairs(raw_queries + base, first, second, a, b, mask)
        a, b = rotate_pairs(a, b, cos, sin)
        _store_pairs(out + base, first, second, a, b, mask)
    elif place >= 0:
        job -= Q_JOBS
        if OWN:
            branch = job // (K_JOBS + V_JOBS)
            job %= K_JOBS + V_JOBS
        else:
            branch = 0
        page = place // PAGE
        if job < K_JOBS:
            heads = job * K_HEADS + tl.arange(0, K_HEADS)
            mask = (heads[:, None] < KV_HEADS) & inside[None, :]
            base = ((page * KV_HEADS + heads)[:, None] * PAGE + place % PAGE) * DIM
            cos, sin = _rotation(cos_sin, positions, token, pairs, inside, half, POSITIONS)
            source = k + token * k_stride
            target = k_cache
            if OWN:
                if branch == 1:
                    source = k_window + token * k_window_stride
                    target = k_window_cache
                elif branch == 2:
                    source = k_phi + token * k_phi_stride
                    target = k_phi_cache
            raw_a, raw_b = _pair_tiles(source, heads, first, second, mask, k_weight, eps, DIM, NORM)
            a, b = rotate_pairs(raw_a, raw_b, cos, sin)
            if OWN and not ROTATE_PHI:
                a = tl.where(branch == 2, raw_a, a)
                b = tl.where(branch == 2, raw_b, b)
            a = a.to(k_cache.dtype.element_ty)
            b = b.to(k_cache.dtype.element_ty)
            _store_pairs(target + base, first, second, a, b, mask)
            if PHI_APART:
                a = raw_a.to(k_cache.dtype.element_ty)
                b = raw_b.to(k_cache.dtype.element_ty)
                _store_pairs(k_phi_cache + base, first, second, a, b, mask)
            if SLOTS:  # noqa: SIM102 (a constant, decided at compile time)
                if (slot >= FIRST_SLOT) & (branch == (2 if OWN else 0)):
                    key_slot(
                        k_phi_cache, k_compressed, table, k_phi_weights, k_phi_bias, slot_cos_sin,
                        a, b, slot, heads, KV_HEADS, DIM, HALF_TILE, PAGE, BLOCK, STRIDE,
                        True, K_WEIGHTED, K_BIASED, ROTATE_SLOT, INTERLEAVED,
                    )  # fmt: skip
        else:
            heads = (job - K_JOBS) * V_HEADS + tl.arange(0, V_HEADS)
            mask = (heads[:, None] < KV_HEADS) & (columns[None, :] < VALUE_DIM)
            base = ((page * KV_HEADS + heads)[:, None] * PAGE + place % PAGE) * VALUE_DIM
            source = v + token * v_stride
            target = v_cache
            if OWN:
                if branch == 1:
                    source = v_window + token * v_window_stride
                    target = v_window_cache
                elif branch == 2:
                    source = v_phi + token * v_phi_stride
                    target = v_phi_cache
            value = tl.load(
                source + heads[:, None] * VALUE_DIM + columns[None, :], mask=mask, other=0.0
            ).to(v_cache.dtype.element_ty)
            tl.store(target + base + columns[None, :], value, mask=mask)
            if VALUE_SLOTS:  # noqa: SIM102
                if (slot >= FIRST_SLOT) & (branch == (2 if OWN else 0)):
                    value_slot(
                        v_phi_cache, v_compressed, table, v_phi_weights, v_phi_bias, value,
                        slot, heads, KV_HEADS, VALUE_DIM, VALUE_TILE, PAGE, BLOCK, STRIDE,
                        True, V_WEIGHTED, V_BIASED,
                    )  # fmt: skip


@triton.jit
def _rotation(
    cos_sin: Any, positions: Any, token: Any, pairs: Any, inside: Any,
    HALF: tl.constexpr, POSITIONS: tl.constexpr,
) -> Any:  # fmt: skip
    """cos and sin [1, pairs] of a token; a padding token's are those of position 0."""
    row = token
    if POSITIONS:
        row = tl.maximum(tl.load(positions + token), 0).to(tl.int64)
    place = cos_sin + row * (2 * HALF) + pairs
    cos = tl.load(place, mask=inside, other=0.0)
    sin = tl.load(place + HALF, mask=inside, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _pair_tiles(
    x: Any, heads: Any, first: Any, second: Any, mask: Any, weight: Any, eps: Any,
    DIM: tl.constexpr, NORM: tl.constexpr,
) -> Any:  # fmt: skip
    """Both places of every pair of some heads, [heads, pairs] float32, after the norm."""
    a = tl.load(x + heads[:, None] * DIM + first[None, :], mask=mask, other=0.0)
    b = tl.load(x + heads[:, None] * DIM + second[None, :], mask=mask, other=0.0)
    dtype = a.dtype
    a = a.to(tl.float32)
    b = b.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) * (1.0 / DIM) + eps)[:, None]
        inside = first < DIM
        weight_a = tl.load(weight + first, mask=inside, other=0.0).to(tl.float32)
        weight_b = tl.load(weight + second, mask=second < DIM, other=0.0).to(tl.float32)
        # Rounded where torch rounds.
        a = ((a * scale).to(dtype).to(tl.float32) * weight_a[None, :]).to(dtype).to(tl.float32)
        b = ((b * scale).to(dtype).to(tl.float32) * weight_b[None, :]).to(dtype).to(tl.float32)
    return a, b


@triton.jit
def _store_pairs(x: Any, first: Any, second: Any, a: Any, b: Any, mask: Any) -> None:
    """Both places of every pair, at x [heads, 1]."""
    tl.store(x + first[None, :], a.to(x.dtype.element_ty), mask=mask)
    tl.store(x + second[None, :], b.to(x.dtype.element_ty), mask=mask)
