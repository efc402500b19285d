"""Scores of blocks from what the compressed attention left of them."""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_mass(
    mass_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    pair: tl.tensor,
    block: tl.tensor,
    tiles: tl.tensor,
    max_tiles: tl.tensor,
    back: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    SPILLS: tl.constexpr,
) -> tl.tensor:
    """What the slots `back` blocks further on give to blocks [TILE]: mass and the maximum that it
    is relative to, [TILE, GP]."""
    g = tl.arange(0, GP)
    source = block + back
    tile = source // TILE_BLOCKS
    known = (tile < tiles)[:, None] & (g < G)[None, :]
    at = ((pair * (1 + SPILLS) + back) * max_tiles * TILE_BLOCKS + source)[:, None] * G
    mass = tl.load(mass_ptr + at + g[None, :], mask=known, other=0.0)
    at = (pair * max_tiles + tile)[:, None] * G
    reference = tl.load(reference_ptr + at + g[None, :], mask=known, other=float("-inf"))
    return mass, reference


@triton.jit
def weigh(mass: tl.tensor, reference: tl.tensor, m: tl.tensor, share: tl.tensor) -> tl.tensor:
    """Masses as probabilities of the whole row, summed over the group: [TILE]."""
    return tl.sum(mass * (tl.exp2(reference - m[None, :]) * share[None, :]), 1)


@triton.jit
def pooled_scores(
    mass_ptr: tl.tensor,
    pair: tl.tensor,
    block: tl.tensor,
    tiles: tl.tensor,
    max_tiles: tl.tensor,
    TILE_BLOCKS: tl.constexpr,
    SPILLS: tl.constexpr,
) -> tl.tensor:
    """Largest mass of a slot that blocks [TILE] pool."""
    score = tl.zeros_like(block).to(tl.float32)
    for back in tl.static_range(0, SPILLS + 1):
        source = block + back
        at = (pair * (1 + SPILLS) + back) * max_tiles * TILE_BLOCKS + source
        known = source // TILE_BLOCKS < tiles
        score = tl.maximum(score, tl.load(mass_ptr + at, mask=known, other=0.0))
    return score


@triton.jit
def mean_scores(
    mass_ptr: tl.tensor,
    pair: tl.tensor,
    block: tl.tensor,
    visible: tl.tensor,
    max_tiles: tl.tensor,
    G: tl.constexpr,
    FIRST: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
) -> tl.tensor:
    """Mean scaled logit of blocks [TILE] whose slots are all visible, −inf for others."""
    end = (block + 1) * PER_BLOCK
    due = end - tl.maximum(block * PER_BLOCK, FIRST)
    known = (end <= visible) & (due > 0)
    at = pair * max_tiles * TILE_BLOCKS + block
    total = tl.load(mass_ptr + at, mask=known, other=0.0) * LN2
    mean = total / (tl.maximum(due, 1) * G).to(tl.float32)
    return tl.where(known, mean, float("-inf"))
