"""Paged caches as other libraries want them: gathered, or seen with one kv head per page."""

import torch
from torch import Tensor

from nsa_kernels.geometry import gather_heads, head_rows


def gathered(cache: Tensor, pages: Tensor) -> Tensor:
    """Whole sequences side by side: cache [X, kv_heads, P, dim], pages [N, n] of each sequence
    → [N, kv_heads, n·P, dim], contiguous."""
    num_kv_heads, page_size = cache.shape[1:3]
    n, width = pages.shape
    order = torch.arange(width, device=cache.device).expand(n, num_kv_heads, width)
    return gather_heads(cache, head_rows(pages, order, num_kv_heads, 1), page_size)


def as_head_pages(cache: Tensor) -> Tensor:
    """A view in which every kv head of a page is a page of its own with a single head:
    [X, kv_heads, P, dim] → [X·kv_heads, P, 1, dim]. Libraries whose pages hold all heads of a token
    side by side can read ours so."""
    return cache.view(-1, cache.shape[2], 1, cache.shape[3])


def head_page_table(block_table: Tensor, num_kv_heads: int) -> Tensor:
    """The table of `as_head_pages`, a row for every (sequence, kv head): [N, W] →
    [N·kv_heads, W]."""
    heads = torch.arange(num_kv_heads, device=block_table.device, dtype=block_table.dtype)
    pages = block_table[:, None] * num_kv_heads + heads[:, None]
    return pages.flatten(0, 1)
