"""Norm, rotate and write a step's queries, keys and values, and complete the slots of single
queries: one launch for T tokens."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.spec import SparseSpec
from nsa_kernels.write.averages import Average, Averages, RowSlots
from nsa_kernels.write.rotate_kernel import write_kernel
from nsa_kernels.write.slots import (
    average_pointers,
    average_switches,
    heads_per_program,
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
    write_kernel[(num_tokens, q_jobs + branches * (k_jobs + v_jobs))](
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
