"""Causal attention over all keys of the pages, for chunks of queries."""

import torch
from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.prefill.flash import flash_kernel
from nsa_kernels.prefill.plan import PlanKey, plan_for
from nsa_kernels.prefill.tiles import next_power_of_2, precision, split_dim, triton_dtype
from nsa_kernels.prefill.tuning import PrefillTuning, fitted
from nsa_kernels.prefill.work import LOG2_E

_EVERYWHERE = (1 << 31) - 1


def dense_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunks: PrefillChunks,
    scale: float,
    *,
    out: Tensor | None = None,
    tuning: PrefillTuning | None = None,
) -> Tensor:
    """q [T, H, D], caches k [pages, kv_heads, P, D] and v [pages, kv_heads, P, Dv] → [T, H, Dv] in
    q's dtype. Keys and values of the chunks are in the caches already."""
    if out is None:
        out = q.new_empty(*q.shape[:2], v.shape[-1])
    assert len(q) == chunks.num_queries == len(out)
    assert scale > 0.0
    assert q.stride(-1) == out.stride(-1) == 1
    assert k.is_contiguous()
    assert v.is_contiguous()
    compute = torch.promote_types(q.dtype, k.dtype)
    kv_heads, page_size, head_dim = k.shape[1:]
    group = q.shape[1] // kv_heads
    group_padded = next_power_of_2(group)
    sizes = fitted(tuning, compute, head_dim, v.shape[-1])
    queries = max(1, sizes.flash_rows // group_padded)
    plan = plan_for(chunks, PlanKey(queries, 0, 0, 1, 0))
    if not len(plan.flash):
        return out
    first_dim, rest_dim = split_dim(head_dim)
    flash_kernel[(len(plan.flash), kv_heads)](
        out,
        *(q,) * 8,
        k,
        v,
        k,
        v,
        plan.flash.tiles,
        plan.chunks,
        plan.block_table,
        0,
        plan.block_table.shape[1],
        _EVERYWHERE,
        scale * LOG2_E,
        out.stride(0),
        out.stride(1),
        q.stride(0),
        q.stride(1),
        0,
        0,
        0,
        0,
        0,
        COMPUTE=triton_dtype(compute),
        COMPRESSED=False,
        VALUES=False,
        WINDOW=0,
        DENSE=True,
        SAME_Q=False,
        GATED=False,
        LOGITS=False,
        MEMORY=0,
        MEMORY_PADDED=16,
        STRIDE=1,
        STRICT=0,
        FIRST_SLOT=0,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PADDED=group_padded,
        QUERIES=queries,
        D=head_dim,
        D_FIRST=first_dim,
        D_REST=rest_dim,
        DV=v.shape[-1],
        DV_PADDED=max(16, next_power_of_2(v.shape[-1])),
        PAGE=page_size,
        SLOTS=sizes.flash_slots,
        KEYS=sizes.flash_keys,
        PRECISION=precision(compute),
        num_warps=sizes.flash_warps,
        num_stages=sizes.flash_stages,
        maxnreg=sizes.flash_registers,
    )
    return out
