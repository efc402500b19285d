"""The only index arithmetic: where tokens, slots and blocks lie in the pages.

A page holds P tokens of every kv head, and the slots that complete at them. Caches are head-major:
`[pages, kv_heads, P, dim]` for tokens, `[pages, kv_heads, P // d, dim]` for compressed slots, so
one head's block is one contiguous run.
"""

import math

import torch
from torch import Tensor


def page_size_for(select_block: int, stride: int, at_least: int = 64) -> int:
    """The smallest page of at least `at_least` tokens that holds whole blocks and strides."""
    unit = math.lcm(select_block, stride)
    return unit * -(-at_least // unit)


def num_pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that `num_tokens` tokens fill, the last perhaps in part."""
    return -(-num_tokens // page_size)


def slot_end(slot: Tensor, stride: int) -> Tensor:
    """Position of the token that completes a slot."""
    return (slot + 1) * stride - 1


def tokens_of_slots(slots: Tensor, block: int, stride: int) -> Tensor:
    """Positions that slots [N] read: [N, l]; negative before the first token."""
    last = slot_end(slots, stride)
    return last[:, None] + torch.arange(1 - block, 1, device=slots.device)


def flat_rows(block_table: Tensor, index: Tensor, per_page: int) -> Tensor:
    """Cache rows of in-sequence indices.

    block_table [N, pages], index [N, K] of tokens (per_page = P) or slots (per_page = P // d)
    → page · per_page + offset [N, K]. Negative indices give a row of the first page.
    """
    index = index.clamp_min(0)
    return block_table.gather(1, index // per_page) * per_page + index % per_page


def head_rows(
    block_table: Tensor, blocks: Tensor, num_kv_heads: int, blocks_per_page: int
) -> Tensor:
    """Rows of (page, kv head, block in page) in a cache viewed as [pages·kv_heads·bpp, …].

    block_table [N, pages], blocks [N, kv_heads, K] (negative ones give block 0) → [N, kv_heads, K].
    """
    blocks = blocks.clamp_min(0)
    n = blocks.shape[0]
    pages = block_table.gather(1, (blocks // blocks_per_page).view(n, -1)).view_as(blocks)
    heads = torch.arange(num_kv_heads, device=blocks.device)[:, None]
    return (pages * num_kv_heads + heads) * blocks_per_page + blocks % blocks_per_page


def gather_heads(cache: Tensor, rows: Tensor, block: int) -> Tensor:
    """cache [pages, kv_heads, X, dim], rows [N, kv_heads, K] of runs of `block` entries (block
    divides X) → [N, kv_heads, K·block, dim], contiguous."""
    n, h, k = rows.shape
    runs = cache.view(-1, block * cache.shape[-1])
    return runs.index_select(0, rows.reshape(-1)).view(n, h, k * block, cache.shape[-1])


def gather_tokens(cache: Tensor, rows: Tensor) -> Tensor:
    """cache [pages, kv_heads, X, dim], flat rows [N, K] → [N, kv_heads, K, dim]."""
    per_page = cache.shape[2]
    return cache[rows // per_page, :, rows % per_page].transpose(1, 2)


def head_token_rows(rows: Tensor, num_kv_heads: int, per_page: int) -> Tensor:
    """Flat rows [N] → rows [N · kv_heads] of a cache viewed as [pages·kv_heads·per_page, dim]."""
    heads = torch.arange(num_kv_heads, device=rows.device)
    first = (rows // per_page * num_kv_heads)[:, None] + heads
    return (first * per_page + (rows % per_page)[:, None]).view(-1)


def scatter_tokens(cache: Tensor, head_rows: Tensor, values: Tensor) -> None:
    """Write values [N, kv_heads, dim] at `head_token_rows` of a cache [pages, kv_heads, X, dim]."""
    dim = cache.shape[-1]
    cache.view(-1, dim).index_copy_(0, head_rows, values.reshape(-1, dim).to(cache.dtype))
