"""The two kinds of attention layer over paged caches, in plain torch.

Both take the queries of a whole step, single queries and chunks mixed, after the step's keys,
values and compressed slots were written, and return what each branch read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.metadata import AttentionMetadata
from nsa_kernels.paged.chunks import recent_chunk, sparse_chunk
from nsa_kernels.paged.queries import Branches, Queries
from nsa_kernels.paged.rows import recent_rows, sparse_rows
from nsa_kernels.spec import SparseSpec

__all__ = ["Branches", "Queries", "dense_attention", "sparse_attention"]


def dense_attention(q: Tensor, cache: LayerCache, meta: AttentionMetadata, scale: float) -> Tensor:
    """Causal attention over all keys: q [T, H, D] → [T, H, Dv]."""
    parts = [
        recent_rows(q[group.start : group.stop], cache.k, cache.v, group, scale, None)
        for group in meta.groups
    ]
    parts += [
        recent_chunk(q[chunk.start : chunk.stop], cache.k, cache.v, chunk, scale, None)
        for chunk in meta.chunks
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def sparse_attention(
    queries: Queries, cache: LayerCache, meta: AttentionMetadata, spec: SparseSpec
) -> Branches:
    """The three branches of NSA, before their gates."""
    parts = [
        sparse_rows(queries.part(group.start, group.stop), cache, group, spec)
        for group in meta.groups
    ]
    parts += [
        sparse_chunk(queries.part(chunk.start, chunk.stop), cache, chunk, spec)
        for chunk in meta.chunks
    ]
    if len(parts) == 1:
        return parts[0]
    compressed, selected, window = (_joined(branch) for branch in zip(*parts, strict=True))
    return compressed, selected, window


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One branch of all tokens, in the step's order."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
