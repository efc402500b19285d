"""Importance of every block for every query, from the slots' logits and the known log-sums.

Logits stand transposed, [slots, columns] with a column for each (head of the group, query) and the
query fastest: each thread then holds a query's heads itself, and their sum needs no exchange.
Threads hold rows r and r + 8 of each 16, so neighbouring slots are given to those.

A slot reads the l tokens that end with it, so its mass also counts in blocks before its own. Part
`a` of a block is what the slots that complete a blocks later give to it; part a lies with the block
of those slots, so importance[j] = Σ parts[a][j + a], or the maximum of them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.prefill.gather import GatheredSlots
from nsa_kernels.prefill.plan import Slab
from nsa_kernels.prefill.sizes import LOG2_E, Heads, LayerSizes, num_parts
from nsa_kernels.prefill.tiles import load_part, next_power_of_2
from nsa_kernels.prefill.work import PrefillWork


@triton.jit
def _blocks_range(
    q: tl.tensor,
    q_rest: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    last_slot: tl.tensor,
    k: tl.tensor,
    seen: tl.tensor,
    log_sum: tl.tensor,
    scale: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    part_stride: tl.tensor,
    wanted: tl.tensor,
    MASKED: tl.constexpr,
    MODE: tl.constexpr,
    PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
    PER_BLOCK: tl.constexpr,
    PER_BLOCK_PADDED: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Parts of blocks [low, high), in tiles of BLOCKS."""
    SLOTS: tl.constexpr = BLOCKS * PER_BLOCK_PADDED
    PAIRED: tl.constexpr = (
        PER_BLOCK == PER_BLOCK_PADDED and PER_BLOCK >= 2 and PER_BLOCK <= 16 and SLOTS >= 16
    )
    lanes = tl.arange(0, SLOTS)
    HALF: tl.constexpr = PER_BLOCK_PADDED // 2 if PAIRED else 1
    if PAIRED:
        place = lanes % HALF * 2 + lanes // 8 % 2
        offset = (lanes // 16 * (8 // HALF) + lanes % 8 // HALF) * PER_BLOCK + place
        inner = tl.arange(0, HALF)[None, :] * 2 + tl.arange(0, 2)[:, None]
    else:
        place = lanes % PER_BLOCK_PADDED
        offset = lanes // PER_BLOCK_PADDED * PER_BLOCK + place
        inner = tl.arange(0, 1)[:, None] + tl.arange(0, PER_BLOCK_PADDED)[None, :]
    for block in tl.range(low, high, BLOCKS):
        slots = block * PER_BLOCK + offset
        keep = slots < last_slot
        if PER_BLOCK != PER_BLOCK_PADDED:
            keep = keep & (place < PER_BLOCK)
        base = k + block * PER_BLOCK * D
        k_tile = load_part(base, offset * D, keep, MASKED, 0, D_FIRST, D).to(q.dtype)
        s = tl.dot(k_tile, tl.trans(q), input_precision=PRECISION)
        if D_REST > 0:
            k_rest = load_part(base, offset * D, keep, MASKED, D_FIRST, D_REST, D).to(q.dtype)
            s = tl.dot(k_rest, tl.trans(q_rest), s, input_precision=PRECISION)
        mass = s * scale
        if MODE != "logit_mean":
            mass = tl.exp2(mass - log_sum[None, :])
        if MASKED:
            visible = (slots[:, None] < seen[None, :]) & (keep & (slots >= FIRST_SLOT))[:, None]
            mass = tl.where(visible, mass, 0.0)
        mass = tl.sum(tl.reshape(mass, [SLOTS, GROUP_PADDED, QUERIES]), 1)
        if PAIRED:
            mass = tl.reshape(mass, [SLOTS // 16, 2, 8 // HALF, HALF, QUERIES])
        else:
            mass = tl.reshape(mass, [BLOCKS, 1, 1, PER_BLOCK_PADDED, QUERIES])
        blocks = block + tl.arange(0, BLOCKS)
        target = parts + rows[None, :] + blocks[:, None]
        inside = (blocks < high)[:, None] & wanted[None, :]
        for a in tl.static_range(PARTS):
            oldest = tl.maximum(inner - OVERLAP, -a * PER_BLOCK)
            newest = tl.minimum(inner, (1 - a) * PER_BLOCK - 1)
            strides = tl.maximum(newest - oldest + 1, 0)
            if PER_BLOCK != PER_BLOCK_PADDED:
                strides = tl.where(inner < PER_BLOCK, strides, 0)
            strides = strides[None, :, None, :, None]
            if MODE == "prob_sum":
                part = tl.sum(tl.sum(mass * strides.to(tl.float32), 1), 2)
            elif MODE == "max_pool":
                part = tl.max(tl.max(tl.where(strides > 0, mass, 0.0), 1), 2)
            else:
                part = tl.sum(tl.sum(mass, 1), 2)
            part = tl.reshape(part, [BLOCKS, QUERIES])
            tl.store(target + a * part_stride, part, mask=inside)


@triton.jit(do_not_specialize=["first_tile", "num_slots", "blocks_per_split"])
def _scores_kernel(
    parts: tl.tensor,
    q: tl.tensor,
    lse: tl.tensor,
    k_slots: tl.tensor,
    tiles: tl.tensor,
    chunks: tl.tensor,
    first_tile: tl.tensor,
    num_slots: tl.tensor,
    blocks_per_split: tl.tensor,
    num_blocks: tl.tensor,
    part_stride: tl.tensor,
    scale: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    COMPUTE: tl.constexpr,
    MODE: tl.constexpr,
    PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
    SELECT_BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    PER_BLOCK_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    COLUMNS: tl.constexpr = GROUP_PADDED * QUERIES
    PER_BLOCK: tl.constexpr = SELECT_BLOCK // STRIDE
    TILE_SLOTS: tl.constexpr = BLOCKS * PER_BLOCK
    kv_head = tl.program_id(1)
    tile = first_tile + tl.program_id(0)
    chunk = tl.load(tiles + 2 * tile)
    start = tl.load(tiles + 2 * tile + 1)
    first = tl.load(chunks + 4 * chunk)
    end = tl.load(chunks + 4 * chunk + 1)
    first_row = tl.load(chunks + 4 * chunk + 2)
    slot_base = tl.load(chunks + 4 * chunk + 3)
    last = tl.minimum(start + QUERIES, end)
    low = tl.program_id(2) * blocks_per_split
    high = tl.minimum(low + blocks_per_split, (last - 1) // SELECT_BLOCK + 1)
    if low >= high:
        return

    columns = tl.arange(0, COLUMNS)
    positions = start + columns % QUERIES
    in_group = columns // QUERIES
    keep = (positions >= first) & (positions < end) & (in_group < GROUP)
    token = (first_row + positions - first).to(tl.int64)
    head = kv_head * GROUP + in_group
    at = token * q_token + head * q_head
    qt = load_part(q, at, keep, True, 0, D_FIRST, D).to(COMPUTE)
    qt_rest = qt
    if D_REST > 0:
        qt_rest = load_part(q, at, keep, True, D_FIRST, D_REST, D).to(COMPUTE)
    log_sum = tl.zeros([COLUMNS], tl.float32)
    if MODE != "logit_mean":
        log_sum = tl.load(lse + token * (KV_HEADS * GROUP) + head, mask=keep, other=float("inf"))
    seen = (positions + 1 - STRICT) // STRIDE
    seen_by_all = (start + 1 - STRICT) // STRIDE
    seen_by_last = (last - STRICT) // STRIDE

    query = tl.arange(0, QUERIES)
    wanted = (start + query >= first) & (start + query < end)
    rows = ((tl.program_id(0) * QUERIES + query).to(tl.int64) * KV_HEADS + kv_head) * num_blocks
    k = k_slots + (kv_head.to(tl.int64) * num_slots + slot_base) * D

    HEAD: tl.constexpr = (FIRST_SLOT + TILE_SLOTS - 1) // TILE_SLOTS * BLOCKS
    head_end = tl.minimum(tl.maximum(low, HEAD), high)
    middle_end = tl.maximum(tl.minimum(seen_by_all // TILE_SLOTS * BLOCKS, high), head_end)
    middle_end = head_end + (middle_end - head_end) // BLOCKS * BLOCKS
    if FIRST_SLOT > 0:
        _blocks_range(
            qt, qt_rest, low, head_end, seen_by_last, k, seen, log_sum, scale, parts, rows,
            part_stride, wanted, True, MODE, PARTS, OVERLAP, PER_BLOCK, PER_BLOCK_PADDED,
            FIRST_SLOT, GROUP_PADDED, QUERIES, D, D_FIRST, D_REST, BLOCKS, PRECISION,
        )  # fmt: skip
    _blocks_range(
        qt, qt_rest, head_end, middle_end, seen_by_last, k, seen, log_sum, scale, parts, rows,
        part_stride, wanted, PER_BLOCK != PER_BLOCK_PADDED, MODE, PARTS, OVERLAP, PER_BLOCK,
        PER_BLOCK_PADDED, FIRST_SLOT, GROUP_PADDED, QUERIES, D, D_FIRST, D_REST, BLOCKS, PRECISION,
    )  # fmt: skip
    _blocks_range(
        qt, qt_rest, middle_end, high, seen_by_last, k, seen, log_sum, scale, parts, rows,
        part_stride, wanted, True, MODE, PARTS, OVERLAP, PER_BLOCK, PER_BLOCK_PADDED,
        FIRST_SLOT, GROUP_PADDED, QUERIES, D, D_FIRST, D_REST, BLOCKS, PRECISION,
    )  # fmt: skip


def block_parts(work: PrefillWork, slots: GatheredSlots, lse: Tensor, slab: Slab) -> Tensor:
    """Parts [PARTS, queries of the slab's tiles, kv_heads, slab.num_blocks] float32.

    Only blocks that a query's tile sees are written, of queries that exist.
    """
    sizes = work.sizes
    heads, spec, plan = sizes.heads, sizes.spec, sizes.plan
    num_tiles = slab.stop - slab.start
    parts = torch.empty(
        (num_parts(spec), num_tiles * heads.score_queries, heads.kv_heads, slab.num_blocks),
        dtype=torch.float32,
        device=lse.device,
    )
    constants = sizes.constants("scores", _constants)
    per_split = _blocks_per_split(heads, num_tiles, slab.num_blocks, constants["BLOCKS"])
    mean = spec.importance == "logit_mean"
    _scores_kernel[(num_tiles, heads.kv_heads, -(-slab.num_blocks // per_split))](
        parts,
        work.q_compressed,
        lse,
        slots.k,
        plan.scores.tiles,
        plan.chunks,
        slab.start,
        plan.num_slots,
        per_split,
        slab.num_blocks,
        parts.stride(0),
        work.scale / heads.group if mean else work.scale * LOG2_E,
        *work.q_compressed.stride()[:2],
        **constants,
        num_warps=heads.tuning.score_warps,
        num_stages=heads.tuning.score_stages,
    )
    return parts


def _constants(sizes: LayerSizes) -> dict[str, Any]:
    spec, heads = sizes.spec, sizes.heads
    padded = next_power_of_2(spec.slots_per_block)
    return {
        **heads.constants,
        "MODE": spec.importance,
        "PARTS": num_parts(spec),
        "OVERLAP": spec.strides_per_slot - 1,
        "SELECT_BLOCK": spec.select_block,
        "STRIDE": spec.compress_stride,
        "STRICT": int(spec.strict),
        "FIRST_SLOT": spec.first_slot,
        "PER_BLOCK_PADDED": padded,
        "QUERIES": heads.score_queries,
        "BLOCKS": max(1, heads.tuning.score_slots // padded),
    }


def _blocks_per_split(heads: Heads, num_tiles: int, num_blocks: int, tile: int) -> int:
    """Blocks that one program scores, a multiple of its tile: all, unless that leaves most of a
    GPU idle. A block's score does not depend on it."""
    splits = heads.tuning.score_splits or max(1, 256 // (num_tiles * heads.kv_heads))
    splits = min(splits, max(1, num_blocks // (4 * tile)))
    return -(-num_blocks // (splits * tile)) * tile
