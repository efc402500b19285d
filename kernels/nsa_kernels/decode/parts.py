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
    """Rows of one head's pages: [N, PADDED], zeros beyond DIM and where not `seen`, if given."""
    dim = tl.arange(0, PADDED)
    start = ptr + page.to(tl.int64) * page_stride
    at = (row * DIM)[:, None] + dim[None, :]
    # a page of all rows is one 64-bit address, and the rest 32-bit offsets
    at = start + at if len(page.shape) == 0 else start[:, None] + at
    if DIM == PADDED and seen is None:
        rows = tl.load(at)
    elif DIM == PADDED:
        rows = tl.load(at, mask=seen[:, None], other=0.0)
    elif seen is None:
        rows = tl.load(at, mask=(dim < DIM)[None, :], other=0.0)
    else:
        rows = tl.load(at, mask=seen[:, None] & (dim < DIM)[None, :], other=0.0)
    return rows


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
def slot_splits(
    position: tl.tensor,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    TILE_SLOTS: tl.constexpr,
    RULE: tl.constexpr,
    MEMORY: tl.constexpr,
) -> tl.tensor:
    """Splits of the compressed slots of a query at a position; learned ones are in the first."""
    tiles = tl.cdiv(visible_slots(position, STRIDE, STRICT), TILE_SLOTS)
    return tl.maximum(tl.cdiv(tiles, tiles_per_split(tiles, RULE)), 1 if MEMORY > 0 else 0)


@triton.jit
def list_splits(
    position: tl.tensor,
    BLOCK: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
    LISTED: tl.constexpr,
    CAPACITY: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tl.tensor:
    """Splits of the selected branch. Some are empty if fewer blocks than CAPACITY were chosen."""
    blocks = position // BLOCK + 1
    if LISTED:
        at_most = tl.minimum(blocks, CAPACITY)
        blocks = tl.where(must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS), at_most, blocks)
    return tl.cdiv(blocks * BLOCK, SPLIT)


@triton.jit
def window_begin(position: tl.tensor, BLOCK: tl.constexpr, WINDOW: tl.constexpr) -> tl.tensor:
    """First token of the block in which a query's window begins."""
    return tl.maximum(position - WINDOW + 1, 0) // BLOCK * BLOCK


@triton.jit
def window_splits(
    position: tl.tensor, BLOCK: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr
) -> tl.tensor:
    """Splits of the window."""
    return tl.cdiv(position + 1 - window_begin(position, BLOCK, WINDOW), SPLIT)


@triton.jit
def store_part(
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    part: tl.tensor,
    m: tl.tensor,
    z: tl.tensor,
    acc: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
) -> None:
    """Maximum, sum and mean value of one split, for every head of the group."""
    store_sums(m_ptr, z_ptr, part, m, z, G, GP)
    g = tl.arange(0, GP)
    dim = tl.arange(0, DVP)
    at = (part * G + g)[:, None] * DV + dim[None, :]
    mean = acc * (1.0 / tl.where(z != 0.0, z, 1.0))[:, None]
    known = (g < G)[:, None] & (dim < DV)[None, :]
    tl.store(acc_ptr + at, mean.to(acc_ptr.dtype.element_ty), mask=known)


@triton.jit
def store_sums(
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    part: tl.tensor,
    m: tl.tensor,
    z: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
) -> None:
    """Maximum and sum of one split."""
    g = tl.arange(0, GP)
    tl.store(m_ptr + part * G + g, m, mask=g < G)
    tl.store(z_ptr + part * G + g, z, mask=g < G)


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
