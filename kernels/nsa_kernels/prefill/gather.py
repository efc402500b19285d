"""Compressed slots of whole sequences, out of their pages and one after the other.

Two kernels read every slot for every tile of queries; copying each once costs nothing beside that,
and gives them rows at a constant distance.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.prefill.sizes import LayerSizes
from nsa_kernels.prefill.tiles import next_power_of_2

GATHER_SLOTS = 64
"""Slots that one program copies."""


@dataclass(frozen=True, slots=True)
class GatheredSlots:
    """k [kv_heads, S, D], v [kv_heads, S, Dv] or None; zeros where a slot does not exist."""

    k: Tensor
    v: Tensor | None


@triton.jit
def _copy(
    target: tl.tensor,
    source: tl.tensor,
    to: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    exists: tl.tensor,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    columns = tl.arange(0, PADDED)
    narrow = (columns < DIM)[None, :]
    rows = tl.load(
        source + at[:, None] * DIM + columns[None, :], mask=exists[:, None] & narrow, other=0.0
    )
    tl.store(target + to[:, None] * DIM + columns[None, :], rows, mask=inside[:, None] & narrow)


@triton.jit(do_not_specialize=["num_slots", "table_width"])
def _gather_kernel(
    k: tl.tensor,
    v: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    tiles: tl.tensor,
    chunks: tl.tensor,
    block_table: tl.tensor,
    num_slots: tl.tensor,
    table_width: tl.tensor,
    VALUES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    STRIDE: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    PER_PAGE: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    DV: tl.constexpr,
    DV_PADDED: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    kv_head = tl.program_id(1).to(tl.int64)
    chunk = tl.load(tiles + 2 * tl.program_id(0))
    slots = tl.load(tiles + 2 * tl.program_id(0) + 1) + tl.arange(0, SLOTS)
    inside = slots < tl.load(chunks + 4 * chunk + 1) // STRIDE
    exists = inside & (slots >= FIRST_SLOT)
    table = block_table + chunk.to(tl.int64) * table_width
    page = tl.load(table + slots // PER_PAGE, mask=exists, other=0).to(tl.int64)
    at = (page * KV_HEADS + kv_head) * PER_PAGE + slots % PER_PAGE
    to = kv_head * num_slots + tl.load(chunks + 4 * chunk + 3) + slots
    _copy(k, k_cache, to, at, inside, exists, D, D_PADDED)
    if VALUES:
        _copy(v, v_cache, to, at, inside, exists, DV, DV_PADDED)


def gather_slots(cache: LayerCache, sizes: LayerSizes) -> GatheredSlots:
    """All slots that each chunk's sequence has completed, those of the chunk included."""
    plan, values = sizes.plan, sizes.spec.uses[0]
    source = cache.k_compressed
    assert source is not None
    v_source = cache.v_compressed if values else source
    assert v_source is not None
    k = source.new_empty(sizes.heads.kv_heads, plan.num_slots, source.shape[-1])
    v = k
    if values:
        v = v_source.new_empty(sizes.heads.kv_heads, plan.num_slots, v_source.shape[-1])
    if plan.num_slots:
        _gather_kernel[(len(plan.gather), sizes.heads.kv_heads)](
            k,
            v,
            source,
            v_source,
            plan.gather.tiles,
            plan.chunks,
            plan.block_table,
            plan.num_slots,
            plan.block_table.shape[1],
            **sizes.constants("gather", _constants),
            num_warps=4,
        )
    return GatheredSlots(k, v if values else None)


def _constants(sizes: LayerSizes) -> dict[str, Any]:
    spec, heads = sizes.spec, sizes.heads
    return {
        "VALUES": spec.uses[0],
        "KV_HEADS": heads.kv_heads,
        "STRIDE": spec.compress_stride,
        "FIRST_SLOT": spec.first_slot,
        "PER_PAGE": heads.page_size // spec.compress_stride,
        "D": heads.head_dim,
        "D_PADDED": next_power_of_2(heads.head_dim),
        "DV": heads.value_dim,
        "DV_PADDED": next_power_of_2(heads.value_dim),
        "SLOTS": GATHER_SLOTS,
    }


def no_slots(like: Tensor) -> GatheredSlots:
    """For layers that read none."""
    empty = torch.empty(like.shape[1], 0, like.shape[-1], dtype=like.dtype, device=like.device)
    return GatheredSlots(empty, None)
