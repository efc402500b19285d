"""Dense attention by torch alone. It cannot read pages: keys and values are gathered first, which
decoding pays for with two more passes over them."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.dense.pages import gathered
from nsa_kernels.geometry import num_pages_for


def decode(q: Tensor, k: Tensor, v: Tensor, rows: DecodeRows, scale: float) -> Tensor:
    """`Decode` of any shape on any device, over keys padded to `rows.max_context`."""
    n, num_heads, dim = q.shape
    num_kv_heads, page_size = k.shape[1:3]
    width = num_pages_for(rows.max_context, page_size)
    position = rows.positions[:, None]
    first = torch.arange(width, device=q.device) * page_size
    pages = torch.where(first <= position, rows.block_table[:, :width], 0)
    seen = torch.arange(width * page_size, device=q.device) <= position
    keys, values = gathered(k, pages), gathered(v, pages)
    unseen = ~seen[:, None, :, None]
    keys.masked_fill_(unseen, 0.0)  # what was never written may be NaN, and 0 · NaN is NaN
    values.masked_fill_(unseen, 0.0)
    out = F.scaled_dot_product_attention(
        q.reshape(n, num_kv_heads, num_heads // num_kv_heads, dim),
        keys,
        values,
        # A padding row would see nothing; let it see a zero.
        attn_mask=(seen | (position < 0))[:, None, None],
        scale=scale,
    )
    return out.reshape(n, num_heads, -1)


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunks: PrefillChunks,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`Prefill` of any shape on any device, one chunk after the other."""
    if out is None:
        out = q.new_empty(*q.shape[:2], v.shape[-1])
    start = 0
    for row, (first, length) in enumerate(zip(chunks.first_positions, chunks.lengths, strict=True)):
        num_keys = first + length
        pages = chunks.block_table[row : row + 1, : num_pages_for(num_keys, k.shape[2])]
        out[start : start + length] = causal(
            q[start : start + length],
            gathered(k, pages)[0, :, :num_keys],
            gathered(v, pages)[0, :, :num_keys],
            scale,
        )
        start += length
    return out


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The last queries of one sequence over all its keys: q [M, H, D], k [kv_heads, L, D],
    v [kv_heads, L, Dv] → [M, H, Dv]."""
    m, group = q.shape[0], q.shape[1] // k.shape[0]
    if k.shape[-1] != v.shape[-1]:  # torch's kernels share kv heads only where the dims agree
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=causal_lower_right(m, k.shape[1]),
        scale=scale,
        enable_gqa=group > 1 and k.shape[-1] == v.shape[-1],
    )
    return out[0].transpose(0, 1)
