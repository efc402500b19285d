"""Causal attention over all keys of the pages, for chunks of queries."""

from typing import cast

from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.prefill.flash import flash_kernel, flash_shape
from nsa_kernels.prefill.plan import PlanKey, PrefillPlan, make_plan
from nsa_kernels.prefill.sizes import LOG2_E, Heads
from nsa_kernels.prefill.tuning import PrefillTuning

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
    key = (q.shape, q.dtype, k.shape, k.dtype, v.shape, tuning)
    if key not in chunks.plans:
        heads = Heads.of(q, k, v, tuning)
        chunks.plans[key] = heads, make_plan(chunks, PlanKey(heads.flash_queries, 0, 0, 1, 0))
    heads, plan = cast(tuple[Heads, PrefillPlan], chunks.plans[key])
    if not len(q):
        return out
    unused = q
    flash_kernel[(len(plan.flash), heads.kv_heads)](
        out,
        unused,
        q,
        *(unused,) * 6,
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
        *out.stride()[:2],
        *q.stride()[:2],
        0,
        0,
        0,
        0,
        0,
        SAME_Q=False,
        GATED=False,
        LOGITS=False,
        MEMORY=0,
        MEMORY_PADDED=16,
        COMPRESSED=False,
        VALUES=False,
        WINDOW=0,
        DENSE=True,
        STRIDE=1,
        STRICT=0,
        FIRST_SLOT=0,
        **flash_shape(heads),
        num_warps=heads.tuning.flash_warps,
        num_stages=heads.tuning.flash_stages,
        maxnreg=heads.tuning.flash_registers,
    )
    return out
