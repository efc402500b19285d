"""Attention over lists of blocks in plain torch: selected, window and dense are the same thing.

Two shapes of work. A *row* is one query with a block list of its own per kv head (decode). A *tile*
is several neighbouring queries of one sequence that share a block list, each with its own mask
(prefill): neighbours choose mostly the same blocks.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nsa_kernels.geometry import gather_heads, head_rows


@dataclass(frozen=True, slots=True)
class BlockList:
    """The keys that rows read: where they lie, and which of them count."""

    rows: Tensor
    """[N, kv_heads, K] rows of the cache viewed in runs of `block` tokens."""
    bias: Tensor
    """[N, kv_heads or 1, 1, K·block] float, 0 where a key counts and −inf where not."""
    block: int
    _masks: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def mask(self, num_kv_heads: int, group: int, dtype: torch.dtype) -> Tensor:
        """The bias for every query head, [N, kv_heads, group, K·block]; kept for later layers."""
        if dtype not in self._masks:
            self._masks[dtype] = self.bias.to(dtype).expand(-1, num_kv_heads, group, -1)
        return self._masks[dtype]


def block_list(
    block_table: Tensor,
    blocks: Tensor,
    positions: Tensor,
    num_kv_heads: int,
    block: int,
    page_size: int,
    window: int | None = None,
) -> BlockList:
    """Rows and bias for queries at positions [N] that read blocks [N, kv_heads or 1, K], −1 for
    none, of sequences with block_table [N, pages]; keys older than `window` do not count."""
    rows = head_rows(
        block_table, blocks.expand(-1, num_kv_heads, -1), num_kv_heads, page_size // block
    )
    keys = blocks[..., None] * block + torch.arange(block, device=blocks.device)
    query = positions[:, None, None, None]
    counts = (blocks >= 0)[..., None] & (keys <= query)
    if window is not None:
        counts &= keys > query - window
    return BlockList(rows, additive(counts).flatten(2).unsqueeze(2), block)


def recent_blocks(positions: Tensor, block: int, num_keys: int | None) -> Tensor:
    """Blocks of the last `num_keys` keys (None: of all) of queries at positions [N]: [N, 1, K]
    ascending, −1 for none."""
    last = positions // block
    first = torch.zeros_like(last)
    if num_keys is not None:
        first = (positions - num_keys + 1).clamp_min(0) // block
    width = int((last - first).max()) + 1
    blocks = first[:, None] + torch.arange(width, device=positions.device)
    return blocks.masked_fill(blocks > last[:, None], -1).unsqueeze(1)


def attend_rows(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, keys: BlockList, scale: float
) -> Tensor:
    """q [N, H, D] → [N, H, Dv]; a row that reads no key gives zeros."""
    n, num_heads, dim = q.shape
    num_kv_heads = k_cache.shape[1]
    group = num_heads // num_kv_heads
    k = gather_heads(k_cache, keys.rows, keys.block)
    v = gather_heads(v_cache, keys.rows, keys.block)
    out = F.scaled_dot_product_attention(
        q.view(n, num_kv_heads, group, dim),
        k,
        v,
        attn_mask=keys.mask(num_kv_heads, group, q.dtype),
        scale=scale,
    )
    return out.reshape(n, num_heads, v.shape[-1])


def attend_tile(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Queries of one sequence over shared keys.

    q [M, H, D], k [kv_heads, L, D], v [kv_heads, L, Dv], bias [kv_heads or 1, 1, M, L]
    → [M, H, Dv]; a query that reads no key gives zeros.
    """
    m, num_heads, dim = q.shape
    num_kv_heads, length = k.shape[:2]
    group = num_heads // num_kv_heads
    grouped = q.view(m, num_kv_heads, group, dim).permute(1, 2, 0, 3)
    out = F.scaled_dot_product_attention(
        grouped,
        k[:, None].expand(-1, group, -1, -1),
        v[:, None].expand(-1, group, -1, -1),
        attn_mask=bias.to(q.dtype).expand(num_kv_heads, group, m, length),
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).reshape(m, num_heads, v.shape[-1])


def causal_bias(
    first_query: int,
    num_queries: int,
    first_key: int,
    num_keys: int,
    window: int | None,
    device: torch.device,
) -> Tensor:
    """[num_queries, num_keys] float: 0 where a key is seen, −inf where not."""
    query = torch.arange(first_query, first_query + num_queries, device=device)[:, None]
    key = torch.arange(first_key, first_key + num_keys, device=device)
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    return additive(seen)


def union_of_blocks(mask: Tensor) -> Tensor:
    """Blocks that any query of a tile chose: mask [M, kv_heads, NB] → ids [kv_heads, U] ascending,
    −1 behind the last."""
    any_query = mask.any(0)
    width = int(any_query.sum(-1).max())
    ids = torch.arange(mask.shape[-1], device=mask.device)
    ordered = torch.where(any_query, ids, mask.shape[-1]).sort(-1).values[:, :width]
    return ordered.masked_fill(ordered == mask.shape[-1], -1)


def tile_bias(mask: Tensor, union: Tensor, first_query: int, block: int) -> Tensor:
    """Which of the union's keys each query of a tile reads.

    mask [M, kv_heads, NB], union [kv_heads, U] → [kv_heads, 1, M, U·block] float.
    """
    m, num_kv_heads, _ = mask.shape
    device = mask.device
    chosen = (
        mask.permute(1, 0, 2).gather(2, union.clamp_min(0)[:, None].expand(num_kv_heads, m, -1))
        & (union >= 0)[:, None]
    )
    keys = union[..., None] * block + torch.arange(block, device=device)
    query = torch.arange(first_query, first_query + m, device=device)[:, None, None]
    counts = chosen[..., None] & (keys[:, None] <= query)
    return additive(counts).flatten(2).unsqueeze(1)


def additive(counts: Tensor) -> Tensor:
    """bool → float32 bias: 0 where true, −inf where false."""
    bias = torch.zeros(counts.shape, dtype=torch.float32, device=counts.device)
    return bias.masked_fill_(~counts, -torch.inf)
