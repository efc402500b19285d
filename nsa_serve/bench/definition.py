"""One attention layer by the definition, in plain torch: what measured kernels are checked with."""

from dataclasses import replace

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.compressed.reference import compressed_attention, visible_slots
from nsa_kernels.metadata import Chunk, RowGroup
from nsa_kernels.paged.chunks import sparse_chunk
from nsa_kernels.paged.queries import Branches, Queries
from nsa_kernels.paged.rows import sparse_rows
from nsa_kernels.select.reference import block_mask, block_scores, select_blocks
from nsa_kernels.spec import SparseSpec


def sparse_decode(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    rows: DecodeRows,
    spec: SparseSpec,
    scale: float,
) -> Tensor:
    """What the decode kernels compute: q [B, H, D], gates [B, H, 3] → [B, H, Dv]."""
    table = rows.block_table.long()
    group = RowGroup(0, len(q), rows.positions.long(), table, rows.max_context - 1)
    return gated(gates, sparse_rows(Queries(q, q_compressed, scale), cache, group, spec), q.dtype)


def sparse_prefill(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    chunks: PrefillChunks,
    spec: SparseSpec,
    scale: float,
) -> Tensor:
    """What the prefill kernels compute: q [T, H, D], gates [T, H, 3] → [T, H, Dv]."""
    out, start = [], 0
    for row, (first, length) in enumerate(zip(chunks.first_positions, chunks.lengths, strict=True)):
        part = slice(start, start + length)
        chunk = Chunk(start, start + length, first, chunks.block_table[row : row + 1].long())
        queries = Queries(q[part], q_compressed[part], scale)
        out.append(gated(gates[part], sparse_chunk(queries, cache, chunk, spec), q.dtype))
        start += length
    return torch.cat(out)


def gated(gates: Tensor, branches: Branches, dtype: torch.dtype) -> Tensor:
    """The weighted sum of the branches that are there."""
    parts = [
        gates[..., i, None].float() * branch.float()
        for i, branch in enumerate(branches)
        if branch is not None
    ]
    return torch.stack(parts).sum(0).to(dtype)


def in_float32(cache: LayerCache, table: Tensor) -> tuple[LayerCache, Tensor]:
    """The pages of one row's table [1, W], and a table of them."""
    pages = table[0].long()
    tensors = {
        name: tensor[pages].float()
        for name in ("k", "v", "k_compressed", "v_compressed")
        if (tensor := getattr(cache, name)) is not None
    }
    k, v = tensors["k"], tensors["v"]
    copy = replace(cache, k_window=k, v_window=v, phi_k=k, phi_v=v, **tensors)
    return copy, torch.arange(len(pages), device=table.device)[None]


def neighbour_overlap(
    q: Tensor, cache: LayerCache, table: Tensor, first: int, spec: SparseSpec, scale: float
) -> float:
    """Mean share of its blocks that a query selects together with the one before it, over
    consecutive queries [M, H, D] of the sequence table [1, W], from position `first` on."""
    copy, own_table = in_float32(cache, table)
    assert copy.k_compressed is not None
    k = copy.k_compressed[own_table[0]].transpose(0, 1).flatten(1, 2)
    heads, num_slots = k.shape[:2]
    m = len(q)
    grouped = q.float().unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)
    positions = torch.arange(first, first + m, device=q.device)
    visible = visible_slots(spec, positions, num_slots)
    each = visible.repeat_interleave(q.shape[1] // heads, 0)
    result = compressed_attention(grouped, k, None, each, scale)
    num_blocks = (first + m - 1) // spec.select_block + 1
    logits, probs = (x.unflatten(1, (m, -1)) for x in (result.logits, result.probs))
    scores = block_scores(spec, logits, probs, visible, num_blocks)
    chosen = block_mask(select_blocks(spec, scores, positions).transpose(0, 1), num_blocks)
    shared = (chosen[1:] & chosen[:-1]).sum(-1) / chosen[1:].sum(-1)
    return float(shared.mean())
