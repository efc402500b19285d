"""For a learned φ: windows out of the pages, and its results into them. φ itself is torch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.batch import CompletedSlots, DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.spec import SparseSpec
from nsa_kernels.write.averages import rotate_pairs, rotation_at_start
from nsa_kernels.write.reference import Compress
from nsa_kernels.write.slot_parts import slot_offsets
from nsa_kernels.write.slots import heads_per_program

TILE = 2048
"""Elements that one program copies."""


def decode_slots(rows: DecodeRows, spec: SparseSpec) -> CompletedSlots:
    """The slot that each row's token completes, or −1: made once for a step's layers."""
    end = rows.positions + 1
    slot = end // spec.compress_stride - 1
    exists = (end % spec.compress_stride == 0) & (slot >= spec.first_slot)
    row = torch.arange(rows.num_rows, dtype=torch.int32, device=end.device)
    return CompletedSlots(torch.where(exists, slot, -1), row, rows.block_table)


def compress_learned(
    cache: LayerCache, work: CompletedSlots, spec: SparseSpec, keys: Compress, values: Compress
) -> None:
    """Make the listed slots with any φ. Where an entry is padding, φ reads zeros and its result
    goes nowhere."""
    if work.slots.shape[0] == 0:
        return
    first = (work.slots + 1) * spec.compress_stride - spec.compress_block
    pairs = [(cache.phi_k, cache.k_compressed, keys)]
    if cache.v_compressed is not None:
        pairs.append((cache.phi_v, cache.v_compressed, values))
    for source, target, phi in pairs:
        assert target is not None
        windows = gather_windows(source, work, spec.compress_block, spec.compress_stride)
        scatter_slots(target, work, phi(windows, first))


def gather_windows(cache: Tensor, work: CompletedSlots, block: int, stride: int) -> Tensor:
    """What slots read, [S, kv_heads, l, dim], of a cache [pages, kv_heads, P, dim]. Zeros before
    the first token, and for padding."""
    num_slots = work.slots.shape[0]
    num_heads, page, dim = cache.shape[1:]
    out = torch.empty((num_slots, num_heads, block, dim), dtype=cache.dtype, device=cache.device)
    if num_slots == 0:
        return out
    columns = triton.next_power_of_2(dim)
    tokens = min(max(TILE // columns, 1), triton.next_power_of_2(block))
    _gather_kernel[(num_slots, num_heads, triton.cdiv(block, tokens))](
        cache,
        work.slots,
        work.rows,
        work.block_table,
        work.block_table.stride(0),
        out,
        KV_HEADS=num_heads,
        DIM=dim,
        COLUMNS=columns,
        TOKENS=tokens,
        PAGE=page,
        BLOCK=block,
        STRIDE=stride,
        num_warps=4,
    )
    return out


def scatter_slots(
    target: Tensor,
    work: CompletedSlots,
    values: Tensor,
    *,
    cos_sin: Tensor | None = None,
    block: int = 0,
    stride: int = 0,
    interleaved: bool = False,
) -> None:
    """Write values [S, kv_heads, dim] at their slots of a cache [pages, kv_heads, P / d, dim].
    With a table `cos_sin` [positions, dim] (cos of every pair, then sin) each is rotated at the
    first token that it read, of windows of `block` tokens every `stride`."""
    num_slots = work.slots.shape[0]
    num_heads, per_page, dim = target.shape[1:]
    if num_slots == 0:
        return
    values = values.contiguous()
    heads = heads_per_program(num_heads, dim, TILE)
    _scatter_kernel[(num_slots, triton.cdiv(num_heads, heads))](
        target,
        work.slots,
        work.rows,
        work.block_table,
        work.block_table.stride(0),
        values,
        values if cos_sin is None else cos_sin,
        KV_HEADS=num_heads,
        HEADS=heads,
        DIM=dim,
        PAIRS=triton.next_power_of_2(triton.cdiv(dim, 2)),
        PER_PAGE=per_page,
        ROTATE=cos_sin is not None,
        INTERLEAVED=interleaved,
        BLOCK=block,
        STRIDE=stride,
        num_warps=4,
    )


@triton.jit
def _gather_kernel(
    cache: tl.tensor,
    slots: tl.tensor,
    rows: tl.tensor,
    block_table: tl.tensor,
    table_stride: tl.tensor,
    out: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
) -> None:
    item = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + item).to(tl.int32)
    table = block_table + tl.load(rows + item).to(tl.int64) * table_stride
    i = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    token = tl.where(slot < 0, -1, (slot + 1) * STRIDE - BLOCK + i)
    exists = (token >= 0) & (i < BLOCK)
    page = tl.load(table + token // PAGE, mask=exists, other=0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    inside = (columns < DIM)[None, :]
    run = ((page * KV_HEADS + head) * PAGE + token % PAGE) * DIM
    window = tl.load(
        cache + run[:, None] + columns[None, :], mask=exists[:, None] & inside, other=0.0
    )
    place = ((item * KV_HEADS + head) * BLOCK + i) * DIM
    tl.store(out + place[:, None] + columns[None, :], window, mask=(i < BLOCK)[:, None] & inside)


@triton.jit
def _scatter_kernel(
    target: tl.tensor,
    slots: tl.tensor,
    rows: tl.tensor,
    block_table: tl.tensor,
    table_stride: tl.tensor,
    values: tl.tensor,
    cos_sin: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    PER_PAGE: tl.constexpr,
    ROTATE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
) -> None:
    item = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    slot = tl.load(slots + item).to(tl.int32)
    if slot >= 0:
        table = block_table + tl.load(rows + item).to(tl.int64) * table_stride
        half: tl.constexpr = (DIM + 1) // 2
        pairs = tl.arange(0, PAIRS)
        first = pairs * 2 if INTERLEAVED else pairs
        second = first + 1 if INTERLEAVED else first + half
        head_mask = heads[:, None] < KV_HEADS
        mask_a = head_mask & (pairs < half)[None, :]
        mask_b = mask_a & (second < DIM)[None, :]
        source = values + (item * KV_HEADS + heads)[:, None] * DIM
        a = tl.load(source + first[None, :], mask=mask_a, other=0.0).to(tl.float32)
        b = tl.load(source + second[None, :], mask=mask_b, other=0.0).to(tl.float32)
        if ROTATE:
            cos, sin = rotation_at_start(cos_sin, slot, pairs, pairs < half, half, BLOCK, STRIDE)
            a, b = rotate_pairs(a, b, cos, sin)
        place = target + slot_offsets(table, slot, heads, KV_HEADS, PER_PAGE, DIM)
        tl.store(place + first[None, :], a.to(target.dtype.element_ty), mask=mask_a)
        tl.store(place + second[None, :], b.to(target.dtype.element_ty), mask=mask_b)
