"""A decode step of a dense layer: every token is a slot that completes at itself."""

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.decode.compressed import NO_MASS, attend_slots
from nsa_kernels.decode.merge import merge_parts
from nsa_kernels.decode.plan import TUNING, PartPlan, Tuning
from nsa_kernels.decode.shape import Shape, head_major, query_arguments


def dense_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: DecodeRows,
    scale: float,
    *,
    out: Tensor | None = None,
    tuning: Tuning = TUNING,
) -> Tensor:
    """Attention of B single queries over all keys of their rows: [B, H, Dv] in q's dtype.

    q [B, H, D] with a last stride of 1, k [pages, kv_heads, P, D], v [pages, kv_heads, P, Dv]. Rows
    at position −1 give zeros.
    """
    shape = Shape.of(q, k, v)
    if out is None:
        out = torch.empty((*q.shape[:2], shape.value_dim), dtype=q.dtype, device=q.device)
    tile, stages = shape.fit(tuning.dense_tile, 16, tuning.dense_stages)
    rule = tuning.dense_split.in_tiles(tile)
    splits = tuning.dense_split.max_splits(-(-rows.max_context // tile), tile)
    half = tuning.half_parts and q.element_size() == 2
    parts = shape.parts(PartPlan(of_slots=splits), q.dtype if half else torch.float32)
    attend_slots[(shape.batch, shape.kv_heads, splits)](
        k_ptr=head_major(k),
        v_ptr=head_major(v),
        memory_k_ptr=None,
        memory_v_ptr=None,
        mass_ptr=None,
        reference_ptr=None,
        arrivals_ptr=None,
        k_page=k.stride(0),
        v_page=v.stride(0),
        max_tiles=0,
        PAGE_ROWS=k.shape[2],
        STRIDE=1,
        STRICT=False,
        FIRST=0,
        PER_BLOCK=tile,
        PLACES=tile,
        TILE_BLOCKS=1,
        OVERLAP=0,
        SPILLS=0,
        RULE=rule,
        MASS=NO_MASS.value,
        VALUES=True,
        BLOCK=1,
        DENSE_LEN=0,
        SURE_BLOCKS=0,
        MEMORY=0,
        MEMORY_PADDED=16,
        **parts.pointers,
        **query_arguments(q, rows, scale),
        **shape.keys,
        **shape.values,
        **shape.launch(
            tuning.dense_warps, stages, tuning, follows=False, registers=tuning.dense_registers
        ),
    )
    merge_parts(
        shape,
        rows,
        out,
        parts,
        None,
        tuning,
        SIGMOID=False,
        STRIDE=1,
        STRICT=False,
        TILE_SLOTS=tile,
        RULE=rule,
        MEMORY=0,
        BLOCK=1,
        DENSE_LEN=0,
        SURE_BLOCKS=0,
        LISTED=False,
        CAPACITY=1,
        LIST_SPLIT=1,
        WINDOW=1,
        WINDOW_SPLIT=1,
    )
    return out
