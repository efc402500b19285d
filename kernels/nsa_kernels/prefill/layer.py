"""The three branches of a layer for chunks of queries: what serves on a GPU."""

import torch
from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.prefill.flash import attend_tiles
from nsa_kernels.prefill.gather import GATHER_SLOTS, gather_slots, no_slots
from nsa_kernels.prefill.plan import PrefillPlan, plan_for, slabs
from nsa_kernels.prefill.scores import block_parts, num_parts
from nsa_kernels.prefill.select import tile_lists
from nsa_kernels.prefill.selected import attend_selected
from nsa_kernels.prefill.tuning import PrefillTuning, fitted
from nsa_kernels.prefill.work import PrefillWork
from nsa_kernels.spec import SparseSpec


def sparse_prefill(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    chunks: PrefillChunks,
    spec: SparseSpec,
    scale: float,
    *,
    memory: tuple[Tensor, Tensor] | None = None,
    gate_logits: bool = False,
    out: Tensor | None = None,
    tuning: PrefillTuning | None = None,
) -> Tensor:
    """Gated sum of the compressed, selected and window branches: [T, H, Dv] in q's dtype.

    q, q_compressed [T, H, D] of all chunks, one after the other; gates [T or 1, H, 3] for
    (compressed, selected, window), or what a sigmoid makes gates of if `gate_logits`. Keys, values
    and slots of the chunks are in the cache already. memory: always visible compressed tokens
    ([kv_heads, m, D], [kv_heads, m, Dv]).
    """
    if out is None:
        out = q.new_empty(*q.shape[:2], cache.v.shape[-1])
    if memory is not None:
        memory = memory[0].contiguous(), memory[1].contiguous()
    _check(q, q_compressed, gates, cache, chunks, spec, scale, out)
    compute = torch.promote_types(q.dtype, cache.k.dtype)
    work = PrefillWork(
        q=q,
        q_compressed=q_compressed,
        gates=gates,
        out=out,
        cache=cache,
        spec=spec,
        scale=scale,
        memory=memory,
        gate_logits=gate_logits,
        tuning=fitted(tuning, compute, q.shape[-1], out.shape[-1]),
    )
    plan = plan_for(chunks, work.plan_key(GATHER_SLOTS))
    if len(plan.flash):
        _run(work, plan)
    return out


def _run(work: PrefillWork, plan: PrefillPlan) -> None:
    spec = work.spec
    scored = len(plan.scores) > 0
    slots = no_slots(work.cache.k)
    if spec.uses[0] or scored:
        slots = gather_slots(
            work.cache, plan, spec.compress_stride, spec.first_slot, values=spec.uses[0]
        )
    lse = torch.empty(work.q.shape[:2], dtype=torch.float32, device=work.q.device)
    attend_tiles(work, plan, slots, lse)
    per_block = 4 * work.kv_heads * num_parts(spec)
    add = spec.uses[0] or spec.uses[2]
    for slab in slabs(
        plan.scores, work.score_queries, spec.select_block, per_block, work.tuning.slab_bytes
    ):
        parts = block_parts(work, plan, slots, lse, slab)
        attend_selected(work, plan, tile_lists(work, plan, parts, slab), slab, add=add)


def _check(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    chunks: PrefillChunks,
    spec: SparseSpec,
    scale: float,
    out: Tensor,
) -> None:
    assert len(q) == chunks.num_queries == len(q_compressed) == len(out)
    assert gates.shape[0] in (1, len(q))
    assert gates.shape[1:] == (q.shape[1], 3)
    assert scale > 0.0
    assert q.stride(-1) == q_compressed.stride(-1) == out.stride(-1) == 1
    assert all(tensor.is_contiguous() for tensor in cache.tensors)
    assert cache.k.shape[2] % spec.select_block == 0
