"""Attention over compressed slots in splits, and what every block has of it.

A tile is whole selection blocks. For each block and head it leaves the weight of the block's own
slots and, apart, what those slots owe to blocks before it (`spills`), relative to the maximum of
the row's split up to that tile, which it leaves too: exact once the whole row's sum is known, and
a few per cent of the bytes that reading the keys again would cost.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.decode.parts import (
    LOW,
    load_queries,
    load_rows,
    merged_softmax,
    must_choose,
    softmax_step,
    store_part,
    store_sums,
    tiles_per_split,
    visible_slots,
)

NO_MASS = tl.constexpr(0)
PROB_SUM = tl.constexpr(1)
LOGIT_MEAN = tl.constexpr(2)
MAX_POOL = tl.constexpr(3)


@triton.jit
def own_weight(place: tl.tensor, OVERLAP: tl.constexpr) -> tl.tensor:
    """Strides that the slot at a place of its block reads in that block."""
    return tl.minimum(place, OVERLAP) + 1


@triton.jit
def spill_weight(
    place: tl.tensor, back: tl.constexpr, PER_BLOCK: tl.constexpr, OVERLAP: tl.constexpr
) -> tl.tensor:
    """Strides that the slot at a place of its block reads in the block that lies `back` before."""
    end = tl.minimum(place + back * PER_BLOCK, OVERLAP)
    return tl.maximum(end - place - (back - 1) * PER_BLOCK, 0)


@triton.jit(do_not_specialize=["table_row", "max_parts", "max_tiles"])
def attend_slots(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    memory_k_ptr: tl.tensor,
    memory_v_ptr: tl.tensor,
    position_ptr: tl.tensor,
    table_ptr: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    arrivals_ptr: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_page: tl.tensor,
    v_page: tl.tensor,
    table_row: tl.tensor,
    max_parts: tl.tensor,
    max_tiles: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    FIRST: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPILLS: tl.constexpr,
    RULE: tl.constexpr,
    MASS: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
    MEMORY: tl.constexpr,
    MEMORY_PADDED: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """One split of one row and kv head.

    k, v [pages, kv_heads, PAGE_ROWS, dim], position [B], table [B, pages]; m, z
    [B, kv_heads, max_parts, G], acc [..., G, DV], reference [B, kv_heads, max_tiles, G], mass
    [B, kv_heads, 1 + SPILLS, max_tiles, G, TILE_BLOCKS] by the block that it belongs to, or
    [B, kv_heads, max_tiles, TILE_BLOCKS] for LOGIT_MEAN.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    if OVERLAP_LAUNCHES:
        # a step's first launch: nothing that it reads or writes is in use when it starts
        gdc_launch_dependents()
    if MASS != NO_MASS and split == 0:
        tl.store(arrivals_ptr + pair, 0)
    position = tl.load(position_ptr + row)
    if position < 0:
        return
    scored = must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS)
    if not VALUES and scored == 0:
        return
    visible = visible_slots(position, STRIDE, STRICT)
    tiles = tl.cdiv(visible, TILE_BLOCKS * PER_BLOCK)
    per_split = tiles_per_split(tiles, RULE)
    begin = split * per_split
    if MEMORY > 0:
        if (begin >= tiles) & (split > 0):
            return
    else:
        if begin >= tiles:
            return
    end = tl.minimum(begin + per_split, tiles)

    element = k_ptr.dtype.element_ty
    q = load_queries(q_ptr + row.to(tl.int64) * q_row + head * G * q_head, q_head, G, GP, D, DP).to(
        element
    )
    m = tl.full([GP], LOW, tl.float32)
    z = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DVP], tl.float32)
    if MEMORY > 0 and split == 0:
        entry = tl.arange(0, MEMORY_PADDED)
        known = entry < MEMORY
        keys = load_rows(memory_k_ptr + head * MEMORY * D, entry * 0, entry, known, 0, D, DP).to(
            element
        )
        s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        p, m, z, _ = softmax_step(tl.where(known[None, :], s, float("-inf")), m, z)
        if VALUES:
            values = load_rows(
                memory_v_ptr + head * MEMORY * DV, entry * 0, entry, known, 0, DV, DVP
            ).to(element)
            acc = tl.dot(p.to(element), values, input_precision="ieee")

    g = tl.arange(0, GP)
    lane = tl.arange(0, TILE_BLOCKS * PLACES)
    place = lane % PLACES
    for tile in range(begin, end):
        slot = (tile * TILE_BLOCKS + lane // PLACES) * PER_BLOCK + place
        seen = (slot >= FIRST) & (slot < visible)
        if PLACES != PER_BLOCK:
            seen = seen & (place < PER_BLOCK)
        page = tl.load(table_ptr + row * table_row + slot // PAGE_ROWS, mask=seen, other=0)
        in_page = head * PAGE_ROWS + slot % PAGE_ROWS
        # a key that is not seen is read, but its logits are not
        keys = load_rows(k_ptr, page, in_page, None, k_page, D, DP)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        p, m, z, shrink = softmax_step(tl.where(seen[None, :], s, float("-inf")), m, z)
        if VALUES:
            values = load_rows(v_ptr, page, in_page, seen, v_page, DV, DVP)
            acc = acc * shrink[:, None]
            acc = tl.dot(p.to(element), values, acc, input_precision="ieee")
        if MASS == PROB_SUM and scored:
            tl.store(reference_ptr + (pair * max_tiles + tile) * G + g, m, mask=g < G)
            store_mass(
                mass_ptr + pair * (1 + SPILLS) * max_tiles * TILE_BLOCKS * G, max_tiles, tile, p,
                place, G, GP, PER_BLOCK, PLACES, TILE_BLOCKS, OVERLAP, SPILLS,
            )  # fmt: skip
        if MASS == LOGIT_MEAN and scored:
            counted = tl.where(seen[None, :] & (g < G)[:, None], s, 0.0)
            of_blocks = tl.sum(tl.sum(tl.reshape(counted, (GP, TILE_BLOCKS, PLACES)), 2), 0)
            at = (pair * max_tiles + tile) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)
            tl.store(mass_ptr + at, of_blocks)

    part = pair * max_parts + split
    if VALUES:
        store_part(m_ptr, z_ptr, acc_ptr, part, m, z, acc, G, GP, DV, DVP)
    else:
        store_sums(m_ptr, z_ptr, part, m, z, G, GP)


@triton.jit
def store_mass(
    ptr: tl.tensor,
    max_tiles: tl.tensor,
    tile: tl.tensor,
    p: tl.tensor,
    place: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPILLS: tl.constexpr,
) -> None:
    """Weights p [GP, slots] of a tile, per block: its own, then what it owes to those before."""
    g = tl.arange(0, GP)[:, None]
    for back in tl.static_range(0, SPILLS + 1):
        if back == 0:
            weight = own_weight(place, OVERLAP)
        else:
            weight = spill_weight(place, back, PER_BLOCK, OVERLAP)
        weighted = tl.reshape(p * weight[None, :].to(tl.float32), (GP, TILE_BLOCKS, PLACES))
        block = (tile * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS) - back)[None, :]
        at = ((back * max_tiles + block // TILE_BLOCKS) * G + g) * TILE_BLOCKS
        known = g < G
        if back > 0:
            known = known & (block >= 0)
        tl.store(ptr + at + block % TILE_BLOCKS, tl.sum(weighted, 2), mask=known)


@triton.jit(do_not_specialize=["table_row", "max_parts", "max_tiles"])
def pool_slots(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    position_ptr: tl.tensor,
    table_ptr: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_page: tl.tensor,
    table_row: tl.tensor,
    max_parts: tl.tensor,
    max_tiles: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    FIRST: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    OVERLAP: tl.constexpr,
    SPILLS: tl.constexpr,
    RULE: tl.constexpr,
    BLOCK: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
    MEMORY: tl.constexpr,
    STEP: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """Largest probability, summed over the group, of the slots that a block pools (`max_pool`).

    A maximum is not linear, so the keys are read again once the whole row's sum is known. mass
    [B, kv_heads, 1 + SPILLS, max_tiles · TILE_BLOCKS]: of the block's own slots, and of its first
    ones that blocks before it pool too.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    if OVERLAP_LAUNCHES:
        gdc_wait()
        gdc_launch_dependents()
    position = tl.load(position_ptr + row)
    if position < 0:
        return
    if must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS) == 0:
        return
    visible = visible_slots(position, STRIDE, STRICT)
    tiles = tl.cdiv(visible, TILE_BLOCKS * PER_BLOCK)
    per_split = tiles_per_split(tiles, RULE)
    begin = split * per_split
    if begin >= tiles:
        return
    splits = tl.maximum(tl.cdiv(tiles, per_split), 1 if MEMORY > 0 else 0)
    m, share = merged_softmax(m_ptr, z_ptr, pair * max_parts, splits, G, GP, STEP)
    q = load_queries(q_ptr + row.to(tl.int64) * q_row + head * G * q_head, q_head, G, GP, D, DP).to(
        k_ptr.dtype.element_ty
    )
    lane = tl.arange(0, TILE_BLOCKS * PLACES)
    place = lane % PLACES
    for tile in range(begin, tl.minimum(begin + per_split, tiles)):
        slot = (tile * TILE_BLOCKS + lane // PLACES) * PER_BLOCK + place
        seen = (slot >= FIRST) & (slot < visible) & (place < PER_BLOCK)
        page = tl.load(table_ptr + row * table_row + slot // PAGE_ROWS, mask=seen, other=0)
        in_page = head * PAGE_ROWS + slot % PAGE_ROWS
        keys = load_rows(k_ptr, page, in_page, seen, k_page, D, DP)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        known = seen[None, :] & (share != 0.0)[:, None]
        p = tl.exp2(tl.where(known, s - m[:, None], float("-inf")))
        mass = tl.sum(p * share[:, None], 0)
        for back in tl.static_range(0, SPILLS + 1):
            pooled = mass
            if back > 0:
                pooled = tl.where(place < OVERLAP - (back - 1) * PER_BLOCK, mass, 0.0)
            of_blocks = tl.max(tl.reshape(pooled, (TILE_BLOCKS, PLACES)), 1)
            at = ((pair * (1 + SPILLS) + back) * max_tiles + tile) * TILE_BLOCKS
            tl.store(mass_ptr + at + tl.arange(0, TILE_BLOCKS), of_blocks)
