"""The three branches of a layer for chunks of queries: what serves on a GPU."""

import torch
from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.prefill.flash import attend_tiles
from nsa_kernels.prefill.gather import GATHER_SLOTS, gather_slots, no_slots
from nsa_kernels.prefill.scores import block_parts
from nsa_kernels.prefill.select import tile_lists
from nsa_kernels.prefill.selected import attend_selected
from nsa_kernels.prefill.sizes import Heads, LayerSizes, layer_sizes
from nsa_kernels.prefill.tuning import PrefillTuning
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
    work = PrefillWork(
        q=q,
        q_compressed=q_compressed,
        gates=gates,
        out=out,
        cache=cache,
        scale=scale,
        memory=memory,
        gate_logits=gate_logits,
        sizes=_sizes(q, cache, chunks, spec, tuning),
    )
    _check(work)
    if len(q):
        _run(work)
    return out


def _sizes(
    q: Tensor,
    cache: LayerCache,
    chunks: PrefillChunks,
    spec: SparseSpec,
    tuning: PrefillTuning | None,
) -> LayerSizes:
    """Kept with the chunks, for the layers that follow."""
    key = (spec, q.shape, q.dtype, cache.k.shape, cache.k.dtype, cache.v.shape, tuning)
    if key not in chunks.plans:
        assert len(q) == chunks.num_queries
        heads = Heads.of(q, cache.k, cache.v, tuning)
        chunks.plans[key] = layer_sizes(chunks, heads, spec, GATHER_SLOTS)
    sizes = chunks.plans[key]
    assert isinstance(sizes, LayerSizes)
    return sizes


def _run(work: PrefillWork) -> None:
    sizes = work.sizes
    use_compressed, _, use_window = sizes.spec.uses
    slots = no_slots(work.cache.k)
    if use_compressed or sizes.slabs:
        slots = gather_slots(work.cache, sizes)
    lse = torch.empty(work.q.shape[:2], dtype=torch.float32, device=work.q.device)
    attend_tiles(work, slots, lse)
    for slab in sizes.slabs:
        parts = block_parts(work, slots, lse, slab)
        lists = tile_lists(sizes, parts, slab)
        attend_selected(work, lists, slab, add=use_compressed or use_window)


def _check(work: PrefillWork) -> None:
    q, cache = work.q, work.cache
    assert work.q_compressed.shape == q.shape
    assert work.out.shape == (*q.shape[:2], cache.v.shape[-1])
    assert work.gates.shape[0] in (1, len(q))
    assert work.gates.shape[1:] == (q.shape[1], 3)
    assert work.scale > 0.0
    assert q.stride(-1) == work.q_compressed.stride(-1) == work.out.stride(-1) == 1
    assert cache.k.is_contiguous()
    assert cache.v.is_contiguous()
    assert cache.page_size % work.sizes.spec.select_block == 0
