"""The parts of every branch put together, weighed by the gates. One program per query head.

A row's parts are numbered compressed, list, window without gaps, so that the order in which they
are added up depends on the row alone and not on how many parts there is room for.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.batch import DecodeRows
from nsa_kernels.decode.parts import LOW, list_splits, slot_splits, window_splits
from nsa_kernels.decode.plan import Tuning, padded
from nsa_kernels.decode.shape import Parts, Shape, launch_options


@triton.jit
def place_of(
    index: tl.tensor,
    list_first: tl.tensor,
    window_first: tl.tensor,
    list_part: tl.tensor,
    window_part: tl.tensor,
) -> tl.tensor:
    """Where a row's parts lie among those that there is room for."""
    in_list = index - list_first + list_part
    in_window = index - window_first + window_part
    return tl.where(index < list_first, index, tl.where(index < window_first, in_list, in_window))


@triton.jit
def load_part(
    acc_ptr: tl.tensor, at: tl.tensor, known: tl.tensor, DV: tl.constexpr, DVP: tl.constexpr
) -> tl.tensor:
    """Mean values [N, DVP] of parts, whether or not they were written."""
    dim = tl.arange(0, DVP)
    mask = known[:, None]
    if DV != DVP:
        mask = mask & (dim < DV)[None, :]
    return tl.load(acc_ptr + at[:, None] * DV + dim[None, :], mask=mask, other=0.0)


@triton.jit
def add_sums(
    m: tl.tensor, z: tl.tensor, inside: tl.tensor, part_m: tl.tensor, part_z: tl.tensor
) -> tl.tensor:
    """Maximum and sum of a branch, with those of its parts among `inside`."""
    part_m = tl.where(inside, part_m, LOW)
    top = tl.maximum(m, tl.max(part_m, 0))
    weight = tl.where(inside, part_z * tl.exp2(part_m - top), 0.0)
    return top, z * tl.exp2(m - top) + tl.sum(weight, 0)


@triton.jit
def load_gate(gate_ptr: tl.tensor, SIGMOID: tl.constexpr) -> tl.tensor:
    """A gate, from its logit if SIGMOID."""
    gate = tl.load(gate_ptr).to(tl.float32)
    if SIGMOID:
        gate = 1.0 / (1.0 + tl.exp(-gate))
    return gate


@triton.jit
def over_sum(gate: tl.tensor, z: tl.tensor) -> tl.tensor:
    """A branch's gate over its softmax sum; 0 if it read nothing."""
    return tl.where(z != 0.0, gate / tl.where(z != 0.0, z, 1.0), 0.0)


@triton.jit(do_not_specialize=["max_parts", "list_part", "window_part"])
def merge_branches(
    position_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    out_ptr: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    gate_row: tl.tensor,
    gate_head: tl.tensor,
    gate_branch: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    max_parts: tl.tensor,
    list_part: tl.tensor,
    window_part: tl.tensor,
    G: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    TILE_SLOTS: tl.constexpr,
    RULE: tl.constexpr,
    MEMORY: tl.constexpr,
    BLOCK: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
    LISTED: tl.constexpr,
    CAPACITY: tl.constexpr,
    LIST_SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_SPLIT: tl.constexpr,
    COMPRESSED: tl.constexpr,
    SELECTED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SIGMOID: tl.constexpr,
    SUMS: tl.constexpr,
    STEP: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """out [B, H, DV] of one row and query head; zeros for a padding row.

    m, z [B, kv_heads, max_parts, G] and acc [..., G, DV]; SUMS parts' sums are read at once, and
    STEP parts' values.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    pair = row.to(tl.int64) * (tl.num_programs(1) // G) + head // G
    position = tl.load(position_ptr + row)
    dim = tl.arange(0, DVP)
    acc = tl.zeros([STEP, DVP], tl.float32)
    list_first = 0
    if COMPRESSED:
        list_first = slot_splits(position, STRIDE, STRICT, TILE_SLOTS, RULE, MEMORY)
    window_first = list_first
    if SELECTED:
        window_first += list_splits(
            position, BLOCK, DENSE_LEN, SURE_BLOCKS, LISTED, CAPACITY, LIST_SPLIT
        )
    parts = window_first
    if WINDOWED:
        parts += window_splits(position, BLOCK, WINDOW, WINDOW_SPLIT)
    parts = tl.where(position >= 0, parts, 0)
    first = pair * max_parts * G + head % G
    m_ptr += first
    z_ptr += first
    acc_ptr += first * DV
    gate_c = tl.full([], 1.0, tl.float32)
    gate_s = gate_c
    gate_w = gate_c
    if gate_ptr is not None:
        gates = gate_ptr + row.to(tl.int64) * gate_row + head * gate_head
        if COMPRESSED:
            gate_c = load_gate(gates, SIGMOID)
        if SELECTED:
            gate_s = load_gate(gates + gate_branch, SIGMOID)
        if WINDOWED:
            gate_w = load_gate(gates + 2 * gate_branch, SIGMOID)
    if OVERLAP_LAUNCHES:
        gdc_wait()

    # the first values are under way before their weights are known
    step = tl.arange(0, STEP)
    first_at = place_of(step, list_first, window_first, list_part, window_part) * G
    values = load_part(acc_ptr, first_at, step < parts, DV, DVP)
    m_c = tl.full([], LOW, tl.float32)
    m_s = m_c
    m_w = m_c
    z_c = tl.full([], 0.0, tl.float32)
    z_s = z_c
    z_w = z_c
    for start in range(0, parts, SUMS):
        among = start + tl.arange(0, SUMS)
        sums_at = place_of(among, list_first, window_first, list_part, window_part) * G
        some_m = tl.load(m_ptr + sums_at, mask=among < parts, other=LOW)
        some_z = tl.load(z_ptr + sums_at, mask=among < parts, other=0.0)
        if COMPRESSED:
            m_c, z_c = add_sums(m_c, z_c, among < list_first, some_m, some_z)
        if SELECTED:
            of_list = (among >= list_first) & (among < window_first)
            m_s, z_s = add_sums(m_s, z_s, of_list, some_m, some_z)
        if WINDOWED:
            m_w, z_w = add_sums(m_w, z_w, among >= window_first, some_m, some_z)
    f_c = over_sum(gate_c, z_c)
    f_s = over_sum(gate_s, z_s)
    f_w = over_sum(gate_w, z_w)
    for start in range(0, parts, STEP):
        index = start + step
        at = place_of(index, list_first, window_first, list_part, window_part) * G
        part_m = tl.load(m_ptr + at, mask=index < parts, other=LOW)
        part_z = tl.load(z_ptr + at, mask=index < parts, other=0.0)
        if start > 0:
            values = load_part(acc_ptr, at, index < parts, DV, DVP)
        m = tl.where(index < list_first, m_c, tl.where(index < window_first, m_s, m_w))
        factor = tl.where(index < list_first, f_c, tl.where(index < window_first, f_s, f_w))
        weight = part_z * tl.exp2(part_m - m) * factor
        read = (part_z != 0.0)[:, None]
        acc += tl.where(read, values.to(tl.float32), 0.0) * weight[:, None]
    out = tl.sum(acc, 0)
    at = row.to(tl.int64) * out_row + head * out_head + dim
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=dim < DV)


def merge_parts(
    shape: Shape,
    rows: DecodeRows,
    out: Tensor,
    parts: Parts,
    gates: Tensor | None,
    tuning: Tuning,
    **constants: Any,
) -> None:
    """Put the branches together in `out` [B, H, Dv]; without gates they count as 1."""
    assert out.stride(2) == 1
    plan = parts.plan
    # no more than a thread's registers hold
    warps = max(tuning.merge_warps, tuning.merge_step * padded(shape.value_dim) // 2048)
    strides = {"gate_row": 0, "gate_head": 0, "gate_branch": 0}
    if gates is not None:
        strides = {
            "gate_row": gates.stride(0) if gates.shape[0] > 1 else 0,
            "gate_head": gates.stride(1) if gates.shape[1] > 1 else 0,
            "gate_branch": gates.stride(2),
        }
    merge_branches[(shape.batch, shape.heads)](
        position_ptr=rows.positions,
        gate_ptr=gates,
        out_ptr=out,
        list_part=plan.list_part,
        window_part=plan.window_part,
        out_row=out.stride(0),
        out_head=out.stride(1),
        G=shape.group,
        COMPRESSED=plan.merges_slots,
        SELECTED=plan.of_list > 0,
        WINDOWED=plan.of_window > 0,
        SUMS=tuning.merge_sums,
        STEP=tuning.merge_step,
        **strides,
        **parts.pointers,
        **shape.values,
        **constants,
        **launch_options(warps, 1, tuning, shape.device),
    )
