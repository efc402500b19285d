"""Scores of the blocks and their exact top n.

A program scores one chunk of a row's blocks and keeps the chunk's best. Where a row has several
chunks, the program that ends last puts their candidates together. Which one that is does not
matter: candidates are compared as integers (the score's bits, then the lower index), and the list
that comes out is ascending.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.decode.compressed import MAX_POOL, PROB_SUM
from nsa_kernels.decode.keys import block_of, chosen, is_forced, key_of, score_of
from nsa_kernels.decode.parts import LOW, NO_KEY, must_choose, slot_splits, visible_slots
from nsa_kernels.decode.scores import mean_scores, pooled_scores, summed_scores


@triton.jit
def above_floor(
    keys: tl.tensor,
    floor_ptr: tl.tensor,
    first: tl.tensor,
    chunks: tl.tensor,
    FLOOR: tl.constexpr,
) -> tl.tensor:
    """Whether the softmax weight among all of the row's blocks exceeds the floor.

    floor [..., chunks, 2]: the largest score of each chunk, and the sum of exp(score − largest).
    """
    top = tl.load(floor_ptr + first * 2)
    for chunk in range(1, chunks):
        top = tl.maximum(top, tl.load(floor_ptr + (first + chunk) * 2))
    total = tl.full([], 0.0, tl.float32)
    for chunk in range(0, chunks):
        chunk_top = tl.load(floor_ptr + (first + chunk) * 2)
        chunk_sum = tl.load(floor_ptr + (first + chunk) * 2 + 1)
        total += chunk_sum * tl.exp(chunk_top - top)
    return tl.exp(score_of(keys) - top) > FLOOR * total


@triton.jit
def store_ascending(
    ptr: tl.tensor, values: tl.tensor, keep: tl.tensor, CAPACITY: tl.constexpr
) -> tl.tensor:
    """Write what is kept, one after the other, no more than CAPACITY; how many were kept."""
    kept = keep.to(tl.int32)
    place = tl.cumsum(kept, 0) - 1
    tl.store(ptr + place, values, mask=keep & (place < CAPACITY))
    return tl.minimum(tl.sum(kept, 0), CAPACITY)


@triton.jit
def store_candidates(
    ptr: tl.tensor, keys: tl.tensor, keep: tl.tensor, TILE: tl.constexpr, CAPACITY: tl.constexpr
) -> None:
    """Write the keys that are kept, and NO_KEY up to CAPACITY."""
    count = store_ascending(ptr, keys, keep, CAPACITY)
    rest = tl.arange(0, TILE)
    nothing = tl.full([TILE], NO_KEY, tl.int64)
    tl.store(ptr + rest, nothing, mask=(rest >= count) & (rest < CAPACITY))


@triton.jit
def finish(
    list_ptr: tl.tensor,
    count_ptr: tl.tensor,
    floor_ptr: tl.tensor,
    pair: tl.tensor,
    floors: tl.tensor,
    chunks: tl.tensor,
    keys: tl.tensor,
    keep: tl.tensor,
    current: tl.tensor,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    FLOOR: tl.constexpr,
    CAPACITY: tl.constexpr,
) -> None:
    """Write the row's list, without those that the floor drops."""
    block = block_of(keys)
    if FLOOR > 0.0:
        heard = above_floor(keys, floor_ptr, floors, chunks, FLOOR)
        keep = keep & (heard | is_forced(block, current, INIT, LOCAL))
    count = store_ascending(list_ptr + pair * CAPACITY, block, keep, CAPACITY)
    tl.store(count_ptr + pair, count)


@triton.jit(do_not_specialize=["max_parts", "max_tiles", "max_chunks"])
def choose_blocks(
    position_ptr: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    candidate_ptr: tl.tensor,
    floor_ptr: tl.tensor,
    arrivals_ptr: tl.tensor,
    list_ptr: tl.tensor,
    count_ptr: tl.tensor,
    max_parts: tl.tensor,
    max_tiles: tl.tensor,
    max_chunks: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    FIRST: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    SPILLS: tl.constexpr,
    RULE: tl.constexpr,
    MASS: tl.constexpr,
    MEMORY: tl.constexpr,
    BLOCK: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
    N: tl.constexpr,
    INIT: tl.constexpr,
    LOCAL: tl.constexpr,
    COUNTED: tl.constexpr,
    HALF: tl.constexpr,
    FLOOR: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """One chunk of TILE blocks of one row and kv head.

    candidate [B, kv_heads, max_chunks, CAPACITY] int64, floor [B, kv_heads, max_chunks, 2],
    arrivals [B, kv_heads] zeroed; list [B, kv_heads, CAPACITY] and count [B, kv_heads] come out.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    chunk = tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    position = tl.load(position_ptr + row)
    if OVERLAP_LAUNCHES:
        gdc_launch_dependents()
        gdc_wait()
    if position < 0:
        return
    if must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS) == 0:
        return
    current = position // BLOCK
    chunks = current // TILE + 1
    if chunk >= chunks:
        return
    visible = visible_slots(position, STRIDE, STRICT)
    tiles = tl.cdiv(visible, TILE_BLOCKS * PER_BLOCK)
    block = chunk * TILE + tl.arange(0, TILE)
    if MASS == PROB_SUM:
        splits = slot_splits(position, STRIDE, STRICT, TILE_BLOCKS * PER_BLOCK, RULE, MEMORY)
        of_chunk: tl.constexpr = TILE // TILE_BLOCKS
        score = summed_scores(
            mass_ptr + pair * (1 + SPILLS) * max_tiles * G * TILE_BLOCKS,
            reference_ptr + pair * max_tiles * G, m_ptr, z_ptr, pair * max_parts, splits,
            chunk * of_chunk + tl.arange(0, of_chunk), tiles, max_tiles,
            G, GP, TILE_BLOCKS, SPILLS, STEP,
        )  # fmt: skip
        score = tl.reshape(score, (TILE,))
    elif MASS == MAX_POOL:
        score = pooled_scores(mass_ptr, pair, block, tiles, max_tiles, TILE_BLOCKS, SPILLS)
    else:
        score = mean_scores(
            mass_ptr, pair, block, visible, max_tiles, G, FIRST, PER_BLOCK, TILE_BLOCKS
        )

    behind = block > current
    forced = is_forced(block, current, INIT, LOCAL)
    ranked = tl.where(forced, float("inf"), score)
    nothing = behind | (~forced & ~(score > float("-inf")))
    keys = tl.where(nothing, NO_KEY, key_of(ranked, block))
    if FLOOR > 0.0:
        of_seen = tl.where(behind, float("-inf"), score)
        top = tl.maximum(tl.max(of_seen, 0), LOW)
        weight = tl.sum(tl.exp(of_seen - top), 0)
        tl.store(floor_ptr + (pair * max_chunks + chunk) * 2, top)
        tl.store(floor_ptr + (pair * max_chunks + chunk) * 2 + 1, weight)
        tl.debug_barrier()

    # first among the chunk's own blocks; if there are other chunks, then among all candidates
    lane = tl.arange(0, TILE)
    here = candidate_ptr + pair * max_chunks * CAPACITY
    total = chunks * CAPACITY
    first = chunk * 0
    is_last = (chunks == 1).to(tl.int32)
    is_local = first + 1
    goes_on = first + 1
    while goes_on > 0:
        keep = chosen(keys, current, TILE, N, INIT, LOCAL, COUNTED, HALF)
        if is_last > 0:
            finish(
                list_ptr, count_ptr, floor_ptr, pair, pair * max_chunks, chunks, keys, keep,
                current, INIT, LOCAL, FLOOR, CAPACITY,
            )  # fmt: skip
            goes_on = goes_on * 0
        else:
            tl.debug_barrier()
            first = tl.where(is_local > 0, 0, first + TILE - CAPACITY)
            to = tl.where(is_local > 0, chunk * CAPACITY, first)
            store_candidates(here + to, keys, keep, TILE, CAPACITY)
            tl.debug_barrier()
            if is_local > 0:
                arrived = tl.atomic_add(arrivals_ptr + pair, 1, sem="acq_rel")
                goes_on = (arrived == chunks - 1).to(tl.int32)
                tl.debug_barrier()
            is_local = is_local * 0
            is_last = (first + TILE >= total).to(tl.int32)
            left = tl.where(goes_on > 0, total - first, 0)
            keys = tl.load(here + first + lane, mask=lane < left, other=NO_KEY)
