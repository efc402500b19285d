"""Pieces that the decode kernels share: what a row sees, how it is cut, softmax in parts.

Logits are in units of log 2 (the scale holds log2 e), maxima start at a finite low so that no
difference of infinities arises, and a split that saw nothing has the sum 0.
"""

import triton
import triton.language as tl

LOW = tl.constexpr(-1.0e30)
NO_KEY = tl.constexpr(-(1 << 63))


@triton.jit
def visible_slots(position: tl.tensor, STRIDE: tl.constexpr, STRICT: tl.constexpr) -> tl.tensor:
    """Slots completed for a query at a position, those that do not exist included."""
    return (position + (0 if STRICT else 1)) // STRIDE


@triton.jit
def must_choose(
    position: tl.tensor,
    BLOCK: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Whether a query may have to leave blocks out: not `SparseSpec.selects_all`."""
    return (position >= DENSE_LEN) & (position // BLOCK >= SURE_BLOCKS)


@triton.jit
def tiles_per_split(tiles: tl.tensor, RULE: tl.constexpr) -> tl.tensor:
    """`SplitRule` on the device: how many tiles a split of a row with so many tiles has."""
    small_or_medium = tl.where(tiles > RULE[3], RULE[1], RULE[0])
    return tl.where(tiles > RULE[4], RULE[2], small_or_medium)


@triton.jit
def softmax_step(s: tl.tensor, m: tl.tensor, z: tl.tensor) -> tl.tensor:
    """One more tile of logits s [M, N]: (weights, new maximum, new sum, factor of what was)."""
    top = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - top[:, None])
    shrink = tl.exp2(m - top)
    return p, top, z * shrink + tl.sum(p, 1), shrink


@triton.jit
def load_rows(
    ptr: tl.tensor,
    page: tl.tensor,
    row: tl.tensor,
    seen: tl.tensor,
    page_stride: tl.tensor,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
) -> tl.tensor:
    """Rows of one head's pages: [N, PADDED], zeros where not seen and beyond DIM."""
    dim = tl.arange(0, PADDED)
    at = page.to(tl.int64) * page_stride + row * DIM
    mask = seen[:, None]
    if DIM != PADDED:
        mask = mask & (dim < DIM)[None, :]
    return tl.load(ptr + at[:, None] + dim[None, :], mask=mask, other=0.0)


@triton.jit
def load_queries(
    ptr: tl.tensor,
    head_stride: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
) -> tl.tensor:
    """The query heads of a group: [GP, DP], zeros beyond G and D."""
    g = tl.arange(0, GP)
    dim = tl.arange(0, DP)
    mask = (g < G)[:, None] & (dim < D)[None, :]
    return tl.load(ptr + g[:, None] * head_stride + dim[None, :], mask=mask, other=0.0)


@triton.jit
def store_part(
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    part: tl.tensor,
    m: tl.tensor,
    z: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
) -> None:
    """Maximum and sum of one split, for every head of the group."""
    g = tl.arange(0, GP)
    tl.store(m_ptr + part * G + g, m, mask=g < G)
    tl.store(z_ptr + part * G + g, z, mask=g < G)


@triton.jit
def store_values(
    acc_ptr: tl.tensor,
    part: tl.tensor,
    acc: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
) -> None:
    """Weighted values of one split, not divided by the sum."""
    g = tl.arange(0, GP)
    dim = tl.arange(0, DVP)
    at = (part * G + g)[:, None] * DV + dim[None, :]
    tl.store(acc_ptr + at, acc, mask=(g < G)[:, None] & (dim < DV)[None, :])


@triton.jit
def merged_softmax(
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    first: tl.tensor,
    splits: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """Maximum [GP] over all splits of a row and 1 / sum [GP], 0 where nothing was read."""
    g = tl.arange(0, GP)
    m = tl.full([GP], LOW, tl.float32)
    z = tl.zeros([GP], tl.float32)
    for start in range(0, splits, STEP):
        split = start + tl.arange(0, STEP)
        at = (first + split)[:, None] * G + g[None, :]
        mask = (split < splits)[:, None] & (g < G)[None, :]
        split_m = tl.load(m_ptr + at, mask=mask, other=LOW)
        split_z = tl.load(z_ptr + at, mask=mask, other=0.0)
        top = tl.maximum(m, tl.max(split_m, 0))
        z = z * tl.exp2(m - top) + tl.sum(split_z * tl.exp2(split_m - top[None, :]), 0)
        m = top
    some = (z != 0.0) & (g < G)
    return m, tl.where(some, 1.0 / tl.where(some, z, 1.0), 0.0)
