"""RMSNorm of a residual stream, joined with the sum before it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 65536
"""A row is one program's; no hidden size is larger."""
PER_WARP = 256
"""Elements of one warp, up to sixteen warps."""


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x += delta in place, rounded as x is stored; then x / rms(x) · weight in float32.

    x, delta [T, hidden] with rows of any stride → [T, hidden] contiguous, of x's dtype.
    """
    num_tokens, hidden = x.shape
    assert hidden <= WIDEST
    assert x.stride(1) == 1
    assert delta is None or (delta.shape == x.shape and delta.stride(1) == 1)
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    tile = triton.next_power_of_2(hidden)
    _norm_kernel[(num_tokens,)](
        x,
        x if delta is None else delta,
        weight,
        out,
        x.stride(0),
        x.stride(0) if delta is None else delta.stride(0),
        eps,
        HIDDEN=hidden,
        TILE=tile,
        ADD=delta is not None,
        num_warps=min(max(tile // PER_WARP, 1), 16),
    )
    return out


@triton.jit
def _norm_kernel(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    x_stride: tl.tensor,
    delta_stride: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, TILE)
    mask = columns < HIDDEN
    scales = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    place = x + token * x_stride + columns
    row = tl.load(place, mask=mask, other=0.0)
    if ADD:
        more = tl.load(delta + token * delta_stride + columns, mask=mask, other=0.0)
        row = (row.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(place, row, mask=mask)
    wide = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) * (1.0 / HIDDEN) + eps)
    normed = (wide * scale).to(x.dtype.element_ty).to(tl.float32)  # rounded where torch rounds
    tl.store(out + token * HIDDEN + columns, (normed * scales).to(out.dtype.element_ty), mask=mask)
