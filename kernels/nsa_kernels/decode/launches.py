"""The launches of a decode step of a sparse layer, one function each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.decode.attend import attend_blocks
from nsa_kernels.decode.compressed import PROB_SUM, attend_slots, pool_slots
from nsa_kernels.decode.merge import merge_parts
from nsa_kernels.decode.plan import SlotPlan, attend_tile, padded, power_of_two, tile_for
from nsa_kernels.decode.select import choose_blocks
from nsa_kernels.decode.shape import Parts, head_major, launch_options, query_arguments
from nsa_kernels.decode.step import Step


@dataclass(frozen=True, slots=True)
class Slots:
    """What the compressed slots gave."""

    plan: SlotPlan
    parts: Parts
    mass: Tensor | None
    reference: Tensor | None
    arrivals: Tensor | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The blocks of each row and kv head: ids [B, kv_heads, capacity] ascending, and how many."""

    ids: Tensor
    count: Tensor


@dataclass(frozen=True, slots=True)
class Near:
    """What the selected blocks and the window gave."""

    selected: Parts | None
    window: Parts | None


def compress(step: Step, q: Tensor) -> Slots:
    """Compressed attention in splits, and the mass of the blocks if some row chooses."""
    shape, plan, cache = step.shape, step.slot_plan, step.cache
    assert cache.k_compressed is not None
    k, v = head_major(cache.k_compressed), None
    if step.spec.uses[0]:
        assert cache.v_compressed is not None
        v = head_major(cache.v_compressed)
    parts = shape.parts(plan.max_splits, v is not None)
    pairs, blocks = (shape.batch, shape.kv_heads), plan.max_tiles * plan.tile_blocks
    mass = reference = arrivals = None
    if step.scores:
        arrivals = shape.empty(*pairs, dtype=torch.int32)
        per_block = (shape.group,) if step.mass == PROB_SUM.value else ()
        mass = shape.empty(*pairs, 1 + plan.spills, blocks, *per_block)
        if step.mass == PROB_SUM.value:
            reference = shape.empty(*pairs, plan.max_tiles, shape.group)
    memory_k, memory_v = (None, None) if step.memory is None else step.memory
    constants = step.slot_constants(plan)
    attend_slots[(*pairs, plan.max_splits)](
        k_ptr=k,
        v_ptr=v,
        memory_k_ptr=None if memory_k is None else memory_k.contiguous(),
        memory_v_ptr=None if memory_v is None else memory_v.contiguous(),
        m_ptr=parts.m,
        z_ptr=parts.z,
        acc_ptr=parts.acc,
        mass_ptr=mass,
        reference_ptr=reference,
        arrivals_ptr=arrivals,
        k_page=k.stride(0),
        v_page=0 if v is None else v.stride(0),
        max_splits=plan.max_splits,
        max_tiles=plan.max_tiles,
        PAGE_ROWS=k.shape[2],
        PLACES=plan.padded_block,
        OVERLAP=step.spec.strides_per_slot - 1,
        MASS=step.mass,
        VALUES=v is not None,
        MEMORY_PADDED=padded(constants["MEMORY"]),
        **query_arguments(q, step.rows, step.scale),
        **shape.keys,
        **shape.values,
        **constants,
        **step.choosing,
        **shape.launch(
            step.tuning.compressed_warps,
            step.tuning.compressed_stages,
            plan.tile_blocks * plan.padded_block,
            step.tuning,
            follows=False,
        ),
    )
    return Slots(plan, parts, mass, reference, arrivals)


def pool(step: Step, q: Tensor, slots: Slots) -> None:
    """The largest mass in every block, which needs every row's sum first."""
    plan, k = slots.plan, step.cache.k_compressed
    assert k is not None
    pool_slots[(step.shape.batch, step.shape.kv_heads, plan.max_splits)](
        k_ptr=k,
        m_ptr=slots.parts.m,
        z_ptr=slots.parts.z,
        mass_ptr=slots.mass,
        k_page=k.stride(0),
        max_splits=plan.max_splits,
        max_tiles=plan.max_tiles,
        PAGE_ROWS=k.shape[2],
        PLACES=plan.padded_block,
        OVERLAP=step.spec.strides_per_slot - 1,
        STEP=step.tuning.merge_step,
        **query_arguments(q, step.rows, step.scale),
        **step.shape.keys,
        **step.slot_constants(plan),
        **step.choosing,
        **step.shape.launch(
            step.tuning.compressed_warps,
            step.tuning.compressed_stages,
            plan.tile_blocks * plan.padded_block,
            step.tuning,
        ),
    )


def choose(step: Step, q: Tensor, slots: Slots) -> Chosen:
    """The blocks that every row reads, unless it reads all of them."""
    if step.spec.importance == "max_pool":
        pool(step, q, slots)
    shape, spec, plan, slot_plan = step.shape, step.spec, step.list_plan, slots.plan
    pairs = (shape.batch, shape.kv_heads)
    chosen = Chosen(
        shape.empty(*pairs, plan.capacity, dtype=torch.int32),
        shape.empty(*pairs, dtype=torch.int32),
    )
    candidates = shape.empty(*pairs, plan.max_chunks, plan.capacity, dtype=torch.int64)
    choose_blocks[(*pairs, plan.max_chunks)](
        position_ptr=step.rows.positions,
        m_ptr=slots.parts.m,
        z_ptr=slots.parts.z,
        mass_ptr=slots.mass,
        reference_ptr=slots.reference,
        candidate_ptr=candidates,
        floor_ptr=shape.empty(*pairs, plan.max_chunks, 2),
        arrivals_ptr=slots.arrivals,
        list_ptr=chosen.ids,
        count_ptr=chosen.count,
        max_splits=slot_plan.max_splits,
        max_tiles=slot_plan.max_tiles,
        max_chunks=plan.max_chunks,
        G=shape.keys["G"],
        GP=shape.keys["GP"],
        MASS=step.mass,
        N=spec.num_selected,
        INIT=spec.init_blocks,
        LOCAL=spec.local_blocks,
        COUNTED=spec.forced_counted,
        HALF=spec.half_merge,
        FLOOR=spec.selection_floor,
        CAPACITY=plan.capacity,
        TILE=plan.tile,
        STEP=step.tuning.merge_step,
        **step.slot_constants(slot_plan),
        **step.choosing,
        **launch_options(step.tuning.select_warps, 1, step.tuning),
    )
    return chosen


def attend(step: Step, q: Tensor, chosen: Chosen | None) -> Near:
    """The selected branch and the window, in splits."""
    shape, spec, plan, cache = step.shape, step.spec, step.list_plan, step.cache
    selects, windowed = spec.uses[1], spec.uses[2]
    in_window = plan.window_splits if windowed else 0
    in_list = plan.list_splits if selects else 0
    selected_splits = in_list + (in_window if step.shared else 0)
    selected = shape.parts(selected_splits) if selects else None
    window = shape.parts(in_window) if windowed else None
    k, v = head_major(cache.k), head_major(cache.v)
    window_k, window_v = head_major(cache.k_window), head_major(cache.v_window)
    tile = tile_for(step.tuning.attend_tile, shape.tile_dims, shape.item_bytes, step.tuning)
    tile, whole = attend_tile(spec.select_block, tile, step.tuning.attend_split)
    attend_blocks[(shape.batch, shape.kv_heads, in_window + in_list)](
        k_ptr=k,
        v_ptr=v,
        window_k_ptr=window_k,
        window_v_ptr=window_v,
        list_ptr=None if chosen is None else chosen.ids,
        count_ptr=None if chosen is None else chosen.count,
        selected_m_ptr=None if selected is None else selected.m,
        selected_z_ptr=None if selected is None else selected.z,
        selected_acc_ptr=None if selected is None else selected.acc,
        window_m_ptr=None if window is None else window.m,
        window_z_ptr=None if window is None else window.z,
        window_acc_ptr=None if window is None else window.acc,
        k_page=k.stride(0),
        v_page=v.stride(0),
        window_k_page=window_k.stride(0),
        window_v_page=window_v.stride(0),
        max_window_splits=in_window,
        max_selected_splits=selected_splits,
        PAGE=cache.page_size,
        WINDOW=spec.window,
        CAPACITY=plan.capacity,
        CAPACITY_PADDED=power_of_two(plan.capacity),
        SPLIT=step.tuning.attend_split,
        TILE=tile,
        WHOLE=whole,
        SELECTED=selects,
        LISTED=chosen is not None,
        WINDOWED=windowed,
        SHARED=step.shared,
        **query_arguments(q, step.rows, step.scale),
        **shape.keys,
        **shape.values,
        **step.choosing,
        **shape.launch(
            step.tuning.attend_warps,
            step.tuning.attend_stages,
            tile,
            step.tuning,
            follows=chosen is not None,
        ),
    )
    return Near(selected, window)


def merge(
    step: Step,
    compressed: Parts | None,
    near: Near | None,
    gates: Tensor,
    gate_logits: bool,
    out: Tensor,
) -> None:
    """Put the splits together and weigh the branches."""
    plan = step.slot_plan
    merge_parts(
        step.shape,
        step.rows,
        out,
        compressed,
        None if near is None else near.selected,
        None if near is None else near.window,
        gates,
        step.tuning,
        SIGMOID=gate_logits,
        STRIDE=step.spec.compress_stride,
        STRICT=step.spec.strict,
        TILE_SLOTS=plan.tile_blocks * plan.slots_per_block,
        RULE=plan.rule,
        MEMORY=0 if step.memory is None else step.memory[0].shape[1],
    )
