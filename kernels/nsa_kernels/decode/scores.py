"""Scores of blocks from what the compressed attention left of them."""

import triton
import triton.language as tl

from nsa_kernels.decode.parts import merged_softmax

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_mass(
    ptr: tl.tensor,
    tile: tl.tensor,
    tiles: tl.tensor,
    max_tiles: tl.tensor,
    back: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
) -> tl.tensor:
    """What slots give to the blocks of tiles [T] that lie `back` before them:
    [GP, T, TILE_BLOCKS], zeros where no such slot was read."""
    g = tl.arange(0, GP)[:, None, None]
    lane = tl.arange(0, TILE_BLOCKS)[None, None, :]
    tile = tile[None, :, None]
    known = (g < G) & (tile + (lane + back) // TILE_BLOCKS < tiles)
    at = ((back * max_tiles + tile) * G + g) * TILE_BLOCKS + lane
    return tl.load(ptr + at, mask=known, other=0.0)


@triton.jit
def load_reference(
    ptr: tl.tensor, tile: tl.tensor, tiles: tl.tensor, G: tl.constexpr, GP: tl.constexpr
) -> tl.tensor:
    """The maxima that the masses of tiles [T] are relative to: [GP, T]."""
    g = tl.arange(0, GP)[:, None]
    tile = tile[None, :]
    known = (g < G) & (tile < tiles)
    return tl.load(ptr + tile * G + g, mask=known, other=float("-inf"))


@triton.jit
def summed_scores(
    mass_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    part: tl.tensor,
    splits: tl.tensor,
    tile: tl.tensor,
    tiles: tl.tensor,
    max_tiles: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    SPILLS: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """Probability mass of the blocks of tiles [T], summed over the group: [T, TILE_BLOCKS].

    mass and reference point to the pair's own.
    """
    # under way before the row's sum is known
    own = load_mass(mass_ptr, tile, tiles, max_tiles, 0, G, GP, TILE_BLOCKS)
    reference = load_reference(reference_ptr, tile, tiles, G, GP)
    if SPILLS > 0:
        spilled = load_mass(mass_ptr, tile, tiles, max_tiles, 1, G, GP, TILE_BLOCKS)
        next_reference = load_reference(reference_ptr, tile + 1, tiles, G, GP)
    m, share = merged_softmax(m_ptr, z_ptr, part, splits, G, GP, STEP)
    weight = tl.exp2(reference - m[:, None]) * share[:, None]
    score = own * weight[:, :, None]
    if SPILLS > 0:
        next_weight = tl.exp2(next_reference - m[:, None]) * share[:, None]
        lane = tl.arange(0, TILE_BLOCKS)[None, None, :]
        inside = lane + 1 < TILE_BLOCKS
        score += spilled * tl.where(inside, weight[:, :, None], next_weight[:, :, None])
    for back in tl.static_range(2, SPILLS + 1):
        spilled = load_mass(mass_ptr, tile, tiles, max_tiles, back, G, GP, TILE_BLOCKS)
        lane = tl.arange(0, TILE_BLOCKS)[None, None, :]
        for hop in tl.static_range(
            back // TILE_BLOCKS, (back + TILE_BLOCKS - 1) // TILE_BLOCKS + 1
        ):
            reference = load_reference(reference_ptr, tile + hop, tiles, G, GP)
            weight = tl.exp2(reference - m[:, None]) * share[:, None]
            here = (lane + back) // TILE_BLOCKS == hop
            score += tl.where(here, spilled * weight[:, :, None], 0.0)
    return tl.sum(score, 0)


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
