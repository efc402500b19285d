"""φ that are a sum over the window, mean or weighted: the part the writing kernels compute."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.spec import SparseSpec


@dataclass(frozen=True, slots=True)
class Average:
    """Σ weight · (token + its intra-block position), for keys or for values."""

    weights: Tensor | None = None
    """[kv_heads, l] float32; None is the mean."""
    bias: Tensor | None = None
    """[kv_heads, dim] float32: what the intra-block positions come to, weighted as tokens are."""
    cos_sin: Tensor | None = None
    """[positions, dim] float32 table; given, the sum is rotated at its first token's position."""
    interleaved: bool = False
    """Whether the rotation turns neighbouring pairs."""


@dataclass(frozen=True, slots=True)
class Averages:
    """φ of keys and of values, and the lengths that it reads."""

    spec: SparseSpec
    keys: Average
    values: Average


@dataclass(frozen=True, slots=True)
class RowSlots:
    """Slots that single queries complete: the kernel that writes their tokens makes them too."""

    rows: DecodeRows
    """The first tokens of the step, in this order."""
    phi: Averages


@triton.jit
def rotate_pairs(a: tl.tensor, b: tl.tensor, cos: tl.tensor, sin: tl.tensor) -> tl.tensor:
    """Both places of each pair, turned; by fma, so that every kernel gets the same bits."""
    return tl.fma(a, cos, -(b * sin)), tl.fma(b, cos, a * sin)


@triton.jit
def average_columns(
    cache: tl.tensor,
    table: tl.tensor,
    weights: tl.tensor,
    bias: tl.tensor,
    newest: tl.tensor,
    slot: tl.tensor,
    heads: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_NEWEST: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
) -> tl.tensor:
    """Columns of one slot of some heads, [heads, columns] float32.

    Token after token and by fma, which no compiler rounds its own way, so that whichever kernel
    sums gets the same bits. `newest`, where given,
    stands for the slot's last token, which another program may not have written yet.
    """
    total = tl.zeros(mask.shape, tl.float32)
    for stride in range(BLOCK // STRIDE):
        start = (slot + 1) * STRIDE - BLOCK + stride * STRIDE
        page = tl.load(table + start // PAGE, mask=start >= 0, other=0).to(tl.int64)
        run = ((page * KV_HEADS + heads) * PAGE + start % PAGE) * DIM
        place = cache + run[:, None] + columns[None, :]
        exists = mask & ((start + heads * 0) >= 0)[:, None]
        for i in tl.static_range(STRIDE):
            if HAS_NEWEST and i + 1 == STRIDE:
                older = mask & ((heads * 0 + stride + 1) < BLOCK // STRIDE)[:, None]
                token = tl.load(place + i * DIM, mask=exists & older, other=0.0)
                token = tl.where(older, token, newest)
            else:
                token = tl.load(place + i * DIM, mask=exists, other=0.0)
            token = token.to(tl.float32)
            if WEIGHTED:
                weight = weights + heads * BLOCK + stride * STRIDE + i
                factor = tl.load(weight, mask=heads < KV_HEADS, other=0.0).to(tl.float32)
                total = tl.fma(token, tl.broadcast_to(factor[:, None], token.shape), total)
            else:
                total += token
    shift = tl.zeros(mask.shape, tl.float32)
    if BIASED:
        shift += tl.load(bias + heads[:, None] * DIM + columns[None, :], mask=mask, other=0.0)
    if not WEIGHTED:
        total = tl.fma(total, tl.full(mask.shape, 1.0 / BLOCK, tl.float32), shift)
    elif BIASED:
        total += shift
    return total


@triton.jit
def rotation_at_start(
    cos_sin: tl.tensor,
    slot: tl.tensor,
    pairs: tl.tensor,
    mask: tl.tensor,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
) -> tl.tensor:
    """cos and sin [1, pairs] at the first token of a slot; before token 0 the angle is negative."""
    first = (slot + 1) * STRIDE - BLOCK
    row = cos_sin + tl.abs(first).to(tl.int64) * (2 * HALF) + pairs
    cos = tl.load(row, mask=mask, other=0.0)
    sin = tl.load(row + HALF, mask=mask, other=0.0)
    sin = tl.where(first < 0, -sin, sin)
    return cos[None, :], sin[None, :]
