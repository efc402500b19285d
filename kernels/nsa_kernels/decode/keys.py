"""Blocks as integers that order by score, and the exact choice of the largest."""

import triton
import triton.language as tl

from nsa_kernels.decode.parts import NO_KEY

BY_COUNTING = tl.constexpr(128)
"""Up to so many candidates are compared each with each; more are sorted."""


@triton.jit
def key_of(score: tl.tensor, block: tl.tensor) -> tl.tensor:
    """int64 that orders by score, then by the lower block."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) + (0x7FFFFFFF - block).to(tl.int64)


@triton.jit
def block_of(key: tl.tensor) -> tl.tensor:
    """The block of a key."""
    return (0x7FFFFFFF - (key & 0x7FFFFFFF)).to(tl.int32)


@triton.jit
def score_of(key: tl.tensor) -> tl.tensor:
    """The score of a key."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def is_forced(
    block: tl.tensor, current: tl.tensor, INIT: tl.constexpr, LOCAL: tl.constexpr
) -> tl.tensor:
    """Blocks that are chosen whatever they score."""
    return (block < INIT) | (block > current - LOCAL)


@triton.jit
def largest(keys: tl.tensor, limit: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """Which of distinct keys [TILE] are among the `limit` largest."""
    if TILE <= BY_COUNTING:
        # summed along the first axis, which a thread holds much of
        greater = keys[:, None] > keys[None, :]
        return tl.sum(greater.to(tl.int32), 0) < limit
    ordered = tl.sort(keys, descending=True)
    place = tl.arange(0, TILE)
    least = tl.max(tl.where(place == limit - 1, ordered, NO_KEY), 0)
    return (keys >= least) & (limit > 0)


@triton.jit
def chosen(
    keys: tl.tensor,
    current: tl.tensor,
    TILE: tl.constexpr,
    N: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    COUNTED: tl.constexpr,
    HALF: tl.constexpr,
) -> tl.tensor:
    """Which of keys [TILE], NO_KEY for none, are chosen: the forced ones, then the best."""
    some = keys != NO_KEY
    block = block_of(keys)
    rivals = keys
    if not COUNTED:
        rivals = tl.where(is_forced(block, current, INIT, LOCAL), NO_KEY, keys)
    if HALF:
        border = current // N * N
        old = block < border
        limit = tl.where(current >= N, N // 2, N)
        best_old = largest(tl.where(old, rivals, NO_KEY), limit, TILE)
        best_new = largest(tl.where(old, NO_KEY, rivals), limit, TILE)
        # below N there is no border, and all are new
        best = tl.where(old, best_old, best_new)
    else:
        best = largest(rivals, N, TILE)
    if not COUNTED:
        best = best | is_forced(block, current, INIT, LOCAL)
        best = best & ((rivals != NO_KEY) | is_forced(block, current, INIT, LOCAL))
    return best & some
