"""The splits of every branch put together, weighed by the gates. One program per query head."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from nsa_kernels.batch import DecodeRows
from nsa_kernels.decode.parts import LOW, tiles_per_split, visible_slots
from nsa_kernels.decode.plan import Tuning
from nsa_kernels.decode.shape import Parts, Shape, launch_options


@triton.jit
def load_splits(
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    first: tl.tensor,
    start: tl.tensor,
    splits: tl.tensor,
    g: tl.tensor,
    G: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """What one head read in splits [start, start + STEP): maxima, sums, values [STEP, DVP].

    Values are read whether or not they were written, so as not to wait for the sums first.
    """
    dim = tl.arange(0, DVP)
    split = start + tl.arange(0, STEP)
    known = split < splits
    at = (first + split) * G + g
    m = tl.load(m_ptr + at, mask=known, other=LOW)
    z = tl.load(z_ptr + at, mask=known, other=0.0)
    mask = known[:, None] & (dim < DV)[None, :]
    values = tl.load(acc_ptr + at[:, None] * DV + dim[None, :], mask=mask, other=0.0)
    return m, z, values


@triton.jit
def merged_values(
    split_m: tl.tensor,
    split_z: tl.tensor,
    values: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    first: tl.tensor,
    splits: tl.tensor,
    g: tl.tensor,
    G: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """What one head read in all splits [DVP], of which the first STEP are given, in a fixed order;
    zeros where it read nothing."""
    m = tl.max(split_m, 0)
    weight = tl.exp2(split_m - m)
    z = tl.sum(split_z * weight, 0)
    read = (split_z != 0.0)[:, None]
    out = tl.sum(tl.where(read, values, 0.0) * weight[:, None], 0)
    for start in range(STEP, splits, STEP):
        split_m, split_z, values = load_splits(
            m_ptr, z_ptr, acc_ptr, first, start, splits, g, G, DV, DVP, STEP
        )
        top = tl.maximum(m, tl.max(split_m, 0))
        shrink = tl.exp2(m - top)
        weight = tl.exp2(split_m - top)
        z = z * shrink + tl.sum(split_z * weight, 0)
        read = (split_z != 0.0)[:, None]
        out = out * shrink + tl.sum(tl.where(read, values, 0.0) * weight[:, None], 0)
        m = top
    return tl.where(z != 0.0, out / tl.where(z != 0.0, z, 1.0), 0.0)


@triton.jit
def weight_of(gate_ptr: tl.tensor, SIGMOID: tl.constexpr) -> tl.tensor:
    """A gate, from its logit if SIGMOID."""
    gate = tl.load(gate_ptr).to(tl.float32)
    if SIGMOID:
        gate = 1.0 / (1.0 + tl.exp(-gate))
    return gate


@triton.jit(do_not_specialize=["compressed_splits", "selected_splits", "window_splits"])
def merge_branches(
    position_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    out_ptr: tl.tensor,
    compressed_m_ptr: tl.tensor,
    compressed_z_ptr: tl.tensor,
    compressed_acc_ptr: tl.tensor,
    selected_m_ptr: tl.tensor,
    selected_z_ptr: tl.tensor,
    selected_acc_ptr: tl.tensor,
    window_m_ptr: tl.tensor,
    window_z_ptr: tl.tensor,
    window_acc_ptr: tl.tensor,
    gate_row: tl.tensor,
    gate_head: tl.tensor,
    gate_branch: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    compressed_splits: tl.tensor,
    selected_splits: tl.tensor,
    window_splits: tl.tensor,
    G: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    STRIDE: tl.constexpr,
    STRICT: tl.constexpr,
    TILE_SLOTS: tl.constexpr,
    RULE: tl.constexpr,
    MEMORY: tl.constexpr,
    COMPRESSED: tl.constexpr,
    SELECTED: tl.constexpr,
    WINDOWED: tl.constexpr,
    GATED: tl.constexpr,
    SIGMOID: tl.constexpr,
    STEP: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """out [B, H, DV] of one row and query head; zeros for a padding row."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    g = head % G
    pair = row.to(tl.int64) * (tl.num_programs(1) // G) + head // G
    position = tl.load(position_ptr + row)
    if OVERLAP_LAUNCHES:
        gdc_wait()
    dim = tl.arange(0, DVP)
    out = tl.zeros([DVP], tl.float32)
    if position >= 0:
        # the first splits of all branches are under way before any is needed
        if COMPRESSED:
            tiles = tl.cdiv(visible_slots(position, STRIDE, STRICT), TILE_SLOTS)
            splits = tl.maximum(
                tl.cdiv(tiles, tiles_per_split(tiles, RULE)), 1 if MEMORY > 0 else 0
            )
            compressed = pair * compressed_splits
            compressed_m, compressed_z, compressed_values = load_splits(
                compressed_m_ptr, compressed_z_ptr, compressed_acc_ptr,
                compressed, 0, splits, g, G, DV, DVP, STEP,
            )  # fmt: skip
        if SELECTED:
            selected = pair * selected_splits
            selected_m, selected_z, selected_values = load_splits(
                selected_m_ptr, selected_z_ptr, selected_acc_ptr,
                selected, 0, selected_splits, g, G, DV, DVP, STEP,
            )  # fmt: skip
        if WINDOWED:
            window = pair * window_splits
            window_m, window_z, window_values = load_splits(
                window_m_ptr, window_z_ptr, window_acc_ptr,
                window, 0, window_splits, g, G, DV, DVP, STEP,
            )  # fmt: skip
        gates = out_ptr
        if GATED:
            gates = gate_ptr + row.to(tl.int64) * gate_row + head * gate_head
        if COMPRESSED:
            branch = merged_values(
                compressed_m, compressed_z, compressed_values,
                compressed_m_ptr, compressed_z_ptr, compressed_acc_ptr,
                compressed, splits, g, G, DV, DVP, STEP,
            )  # fmt: skip
            out = branch * weight_of(gates, SIGMOID) if GATED else branch
        if SELECTED:
            branch = merged_values(
                selected_m, selected_z, selected_values,
                selected_m_ptr, selected_z_ptr, selected_acc_ptr,
                selected, selected_splits, g, G, DV, DVP, STEP,
            )  # fmt: skip
            out += branch * weight_of(gates + gate_branch, SIGMOID)
        if WINDOWED:
            branch = merged_values(
                window_m, window_z, window_values,
                window_m_ptr, window_z_ptr, window_acc_ptr,
                window, window_splits, g, G, DV, DVP, STEP,
            )  # fmt: skip
            out += branch * weight_of(gates + 2 * gate_branch, SIGMOID)
    at = row.to(tl.int64) * out_row + head * out_head + dim
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=dim < DV)


def merge_parts(
    shape: Shape,
    rows: DecodeRows,
    out: Tensor,
    compressed: Parts | None,
    selected: Parts | None,
    window: Parts | None,
    gates: Tensor | None,
    tuning: Tuning,
    **constants: Any,
) -> None:
    """Put the branches together in `out` [B, H, Dv]; without gates only `compressed` counts."""
    assert out.stride(2) == 1
    strides = {"gate_row": 0, "gate_head": 0, "gate_branch": 0}
    if gates is not None:
        strides = {
            "gate_row": gates.stride(0) if gates.shape[0] > 1 else 0,
            "gate_head": gates.stride(1) if gates.shape[1] > 1 else 0,
            "gate_branch": gates.stride(2),
        }
    parts: dict[str, Any] = {}
    for name, branch in (("compressed", compressed), ("selected", selected), ("window", window)):
        parts[f"{name}_m_ptr"] = None if branch is None else branch.m
        parts[f"{name}_z_ptr"] = None if branch is None else branch.z
        parts[f"{name}_acc_ptr"] = None if branch is None else branch.acc
        parts[f"{name}_splits"] = 0 if branch is None else branch.splits
    merge_branches[(shape.batch, shape.heads)](
        position_ptr=rows.positions,
        gate_ptr=gates,
        out_ptr=out,
        out_row=out.stride(0),
        out_head=out.stride(1),
        G=shape.group,
        COMPRESSED=compressed is not None,
        SELECTED=selected is not None,
        WINDOWED=window is not None,
        GATED=gates is not None,
        STEP=tuning.merge_step,
        **strides,
        **parts,
        **shape.values,
        **constants,
        **launch_options(tuning.merge_warps, 1, tuning),
    )
