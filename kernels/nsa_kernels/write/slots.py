"""Compressed slots that are averages of their tokens: keys and values in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.batch import CompletedSlots, DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.write.averages import Average, Averages
from nsa_kernels.write.slot_parts import key_slot, value_slot

TILE = 512
"""Elements that one program sums."""
WARPS = 2


def complete_slots(cache: LayerCache, work: CompletedSlots, phi: Averages) -> None:
    """Make the listed slots from tokens that are in the pages. The cache must have slots."""
    _launch(cache, phi, work.slots.shape[0], work.block_table, work.slots, work.rows)


def complete_decode_slots(cache: LayerCache, rows: DecodeRows, phi: Averages) -> None:
    """Make the slots that complete at the rows' own tokens, after these were written."""
    _launch(cache, phi, rows.num_rows, rows.block_table, rows.positions, None)


def _launch(
    cache: LayerCache,
    phi: Averages,
    count: int,
    block_table: Tensor,
    indices: Tensor,
    rows: Tensor | None,
) -> None:
    keys = cache.k_compressed
    assert keys is not None
    if count == 0:
        return
    values = cache.v_compressed
    num_heads, dim = keys.shape[1], keys.shape[3]
    value_dim = dim if values is None else values.shape[3]
    heads = heads_per_program(num_heads, max(dim, value_dim), TILE)
    nothing = keys  # never read, but a kernel needs a pointer
    grid = (count, triton.cdiv(num_heads, heads), 1 if values is None else 2)
    _slots_kernel[grid](
        cache.phi_k,
        cache.phi_v,
        keys,
        nothing if values is None else values,
        block_table,
        block_table.stride(0),
        indices,
        nothing if rows is None else rows,
        *average_pointers(phi.keys, nothing),
        *average_pointers(phi.values, nothing)[:2],
        FROM_POSITIONS=rows is None,
        FIRST_SLOT=phi.spec.first_slot,
        KV_HEADS=num_heads,
        HEADS=heads,
        DIM=dim,
        VALUE_DIM=value_dim,
        HALF_TILE=triton.next_power_of_2(dim // 2),
        VALUE_TILE=triton.next_power_of_2(value_dim),
        PAGE=cache.page_size,
        BLOCK=phi.spec.compress_block,
        STRIDE=phi.spec.compress_stride,
        INTERLEAVED=phi.keys.interleaved,
        **average_switches(phi),
        num_warps=WARPS,
    )


def heads_per_program(num_heads: int, dim: int, tile: int) -> int:
    """A power of two of heads whose elements fill a tile."""
    wanted = max(tile // triton.next_power_of_2(dim), 1)
    return int(min(triton.next_power_of_2(num_heads), wanted))


def average_pointers(average: Average, nothing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, bias, table), `nothing` for what is not there."""
    return (
        nothing if average.weights is None else average.weights,
        nothing if average.bias is None else average.bias,
        nothing if average.cos_sin is None else average.cos_sin,
    )


def average_switches(phi: Averages) -> dict[str, bool]:
    """What of φ exists, as the kernels' constants."""
    return {
        "K_WEIGHTED": phi.keys.weights is not None,
        "K_BIASED": phi.keys.bias is not None,
        "V_WEIGHTED": phi.values.weights is not None,
        "V_BIASED": phi.values.bias is not None,
        "ROTATE_SLOT": phi.keys.cos_sin is not None,
    }


@triton.jit
def _slots_kernel(
    phi_k: tl.tensor,
    phi_v: tl.tensor,
    k_compressed: tl.tensor,
    v_compressed: tl.tensor,
    block_table: tl.tensor,
    table_stride: tl.tensor,
    indices: tl.tensor,
    rows: tl.tensor,
    k_weights: tl.tensor,
    k_bias: tl.tensor,
    cos_sin: tl.tensor,
    v_weights: tl.tensor,
    v_bias: tl.tensor,
    FROM_POSITIONS: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HALF_TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    K_WEIGHTED: tl.constexpr,
    K_BIASED: tl.constexpr,
    V_WEIGHTED: tl.constexpr,
    V_BIASED: tl.constexpr,
    ROTATE_SLOT: tl.constexpr,
) -> None:
    item = tl.program_id(0)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    index = tl.load(indices + item).to(tl.int32)
    if FROM_POSITIONS:
        slot = (index + 1) // STRIDE - 1
        row = item
        exists = (index >= 0) & ((index + 1) % STRIDE == 0)
    else:
        slot = index
        row = tl.load(rows + item)
        exists = slot >= 0
    if exists & (slot >= FIRST_SLOT):
        table = block_table + row.to(tl.int64) * table_stride
        if tl.program_id(2) == 0:
            key_slot(
                phi_k,
                k_compressed,
                table,
                k_weights,
                k_bias,
                cos_sin,
                0.0,
                0.0,
                slot,
                heads,
                KV_HEADS,
                DIM,
                HALF_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                False,
                K_WEIGHTED,
                K_BIASED,
                ROTATE_SLOT,
                INTERLEAVED,
            )
        else:
            value_slot(
                phi_v,
                v_compressed,
                table,
                v_weights,
                v_bias,
                0.0,
                slot,
                heads,
                KV_HEADS,
                VALUE_DIM,
                VALUE_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                False,
                V_WEIGHTED,
                V_BIASED,
            )
