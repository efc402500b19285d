"""Writing the caches in plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.geometry import (
    flat_rows,
    gather_tokens,
    head_token_rows,
    scatter_tokens,
    tokens_of_slots,
)
from nsa_kernels.metadata import SlotWork

Compress = Callable[[Tensor, Tensor], Tensor]
"""φ: (windows [S, kv_heads, l, dim], position of each window's first token [S])
→ [S, kv_heads, dim]"""


def write_tokens(cache: Tensor, rows: Tensor, values: Tensor) -> None:
    """values [T, kv_heads, dim] at rows [T · kv_heads] of the cache viewed as [·, dim]."""
    scatter_tokens(cache, rows, values)


def compress_slots(
    cache: LayerCache, work: SlotWork, block: int, stride: int, keys: Compress, values: Compress
) -> None:
    """Make the completed slots from the tokens in the pages, after these were written."""
    assert cache.k_compressed is not None
    tokens = tokens_of_slots(work.slots, block, stride)
    rows = flat_rows(work.block_table, tokens, cache.page_size)
    first = tokens[:, 0]
    per_page = cache.page_size // stride
    places = flat_rows(work.block_table, work.slots[:, None], per_page).squeeze(1)
    places = head_token_rows(places, cache.k_compressed.shape[1], per_page)
    missing = (tokens < 0)[:, None, :, None] if bool((first < 0).any()) else None
    pairs = [(cache.phi_k, cache.k_compressed, keys)]
    if cache.v_compressed is not None:
        pairs.append((cache.phi_v, cache.v_compressed, values))
    for source, target, compress in pairs:
        windows = gather_tokens(source, rows)
        if missing is not None:
            windows = torch.where(missing, torch.zeros_like(windows), windows)
        scatter_tokens(target, places, compress(windows, first))
