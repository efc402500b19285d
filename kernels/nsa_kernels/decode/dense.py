"""A decode step of a dense layer: every token is a slot that completes at itself."""

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.decode.compressed import NO_MASS, attend_slots
from nsa_kernels.decode.merge import merge_parts
from nsa_kernels.decode.plan import TUNING, Tuning, tile_for
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
    tile = tile_for(tuning.dense_tile, shape.tile_dims, shape.item_bytes, tuning)
    rule = tuning.dense_split.in_tiles(tile)
    splits = tuning.dense_split.max_splits(-(-rows.max_context // tile), tile)
    parts = shape.parts(splits)
    attend_slots[(shape.batch, shape.kv_heads, splits)](
        k_ptr=head_major(k),
        v_ptr=head_major(v),
        memory_k_ptr=None,
        memory_v_ptr=None,
        m_ptr=parts.m,
        z_ptr=parts.z,
        acc_ptr=parts.acc,
        mass_ptr=None,
        reference_ptr=None,
        arrivals_ptr=None,
        k_page=k.stride(0),
        v_page=v.stride(0),
        max_splits=splits,
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
        **query_arguments(q, rows, scale),
        **shape.keys,
        **shape.values,
        **shape.launch(tuning.dense_warps, tuning.dense_stages, tile, tuning, follows=False),
    )
    merge_parts(
        shape,
        rows,
        out,
        parts,
        None,
        None,
        None,
        tuning,
        SIGMOID=False,
        STRIDE=1,
        STRICT=False,
        TILE_SLOTS=tile,
        RULE=rule,
        MEMORY=0,
    )
    return out
