"""The launches of a decode step of a sparse layer, one function each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.decode.attend import attend_blocks
from nsa_kernels.decode.compressed import PROB_SUM, attend_slots, pool_slots
from nsa_kernels.decode.merge import merge_parts
from nsa_kernels.decode.plan import SlotPlan, attend_tile, padded
from nsa_kernels.decode.select import choose_blocks
from nsa_kernels.decode.shape import Parts, head_major, launch_options, query_arguments
from nsa_kernels.decode.step import Step


@dataclass(frozen=True, slots=True)
class Slots:
    """What the compressed slots gave."""

    plan: SlotPlan
    mass: Tensor | None
    reference: Tensor | None
    arrivals: Tensor | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The blocks of each row and kv head: ids [B, kv_heads, capacity] ascending, and how many."""

    ids: Tensor
    count: Tensor
    used: tuple[Tensor, ...]
    """Memory of the launch that chooses: the next one may start before it has ended."""


def compress(step: Step, q: Tensor, parts: Parts) -> Slots:
    """Compressed attention in splits, and the mass of the blocks if some row chooses."""
    shape, plan, cache = step.shape, step.slot_plan, step.cache
    assert cache.k_compressed is not None
    k, v = head_major(cache.k_compressed), None
    if step.spec.uses[0]:
        assert cache.v_compressed is not None
        v = head_major(cache.v_compressed)
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
        mass_ptr=mass,
        reference_ptr=reference,
        arrivals_ptr=arrivals,
        k_page=k.stride(0),
        v_page=0 if v is None else v.stride(0),
        max_tiles=plan.max_tiles,
        PAGE_ROWS=k.shape[2],
        PLACES=plan.padded_block,
        OVERLAP=step.spec.strides_per_slot - 1,
        MASS=step.mass,
        VALUES=v is not None,
        MEMORY_PADDED=padded(constants["MEMORY"]),
        **parts.pointers,
        **query_arguments(q, step.rows, step.scale),
        **shape.keys,
        **shape.values,
        **constants,
        **step.choosing,
        **shape.launch(
            step.tuning.compressed_warps,
            step.slot_stages[1],
            step.tuning,
            follows=False,
            registers=step.tuning.compressed_registers,
        ),
    )
    return Slots(plan, mass, reference, arrivals)


def pool(step: Step, q: Tensor, parts: Parts, slots: Slots) -> None:
    """The largest mass in every block, which needs every row's sum first."""
    plan, k = slots.plan, step.cache.k_compressed
    assert k is not None
    pool_slots[(step.shape.batch, step.shape.kv_heads, plan.max_splits)](
        k_ptr=k,
        m_ptr=parts.m,
        z_ptr=parts.z,
        mass_ptr=slots.mass,
        k_page=k.stride(0),
        max_parts=parts.plan.total,
        max_tiles=plan.max_tiles,
        PAGE_ROWS=k.shape[2],
        PLACES=plan.padded_block,
        OVERLAP=step.spec.strides_per_slot - 1,
        STEP=step.tuning.select_step,
        **query_arguments(q, step.rows, step.scale),
        **step.shape.keys,
        **step.slot_constants(plan),
        **step.choosing,
        **step.shape.launch(step.tuning.compressed_warps, step.slot_stages[1], step.tuning),
    )


def choose(step: Step, q: Tensor, parts: Parts, slots: Slots) -> Chosen:
    """The blocks that every row reads, unless it reads all of them."""
    if step.spec.importance == "max_pool":
        pool(step, q, parts, slots)
    shape, spec, plan, slot_plan = step.shape, step.spec, step.list_plan, slots.plan
    pairs = (shape.batch, shape.kv_heads)
    tile = max(plan.tile, slot_plan.tile_blocks)
    chunks = -(-plan.max_blocks // tile)
    candidates = shape.empty(*pairs, chunks, plan.capacity, dtype=torch.int64)
    floor = shape.empty(*pairs, chunks, 2)
    chosen = Chosen(
        shape.empty(*pairs, plan.capacity, dtype=torch.int32),
        shape.empty(*pairs, dtype=torch.int32),
        (candidates, floor),
    )
    choose_blocks[(*pairs, chunks)](
        position_ptr=step.rows.positions,
        m_ptr=parts.m,
        z_ptr=parts.z,
        mass_ptr=slots.mass,
        reference_ptr=slots.reference,
        candidate_ptr=candidates,
        floor_ptr=floor,
        arrivals_ptr=slots.arrivals,
        list_ptr=chosen.ids,
        count_ptr=chosen.count,
        max_parts=parts.plan.total,
        max_tiles=slot_plan.max_tiles,
        max_chunks=chunks,
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
        TILE=tile,
        STEP=step.tuning.select_step,
        **step.slot_constants(slot_plan),
        **step.choosing,
        **launch_options(step.tuning.select_warps, 1, step.tuning, shape.device),
    )
    return chosen


def attend(step: Step, q: Tensor, parts: Parts, chosen: Chosen | None) -> None:
    """The selected branch and the window, in splits."""
    shape, spec, cache, tuning = step.shape, step.spec, step.cache, step.tuning
    k, v = head_major(cache.k), head_major(cache.v)
    window_k, window_v = head_major(cache.k_window), head_major(cache.v_window)
    tile, stages = shape.fit(tuning.attend_tile, 16, tuning.attend_stages)
    plan = step.list_plan
    tile, whole = attend_tile(spec.select_block, tile, plan.list_split, plan.window_split)
    in_window, in_list = parts.plan.of_window, parts.plan.of_list
    attend_blocks[(shape.batch, shape.kv_heads, in_window + in_list)](
        k_ptr=k,
        v_ptr=v,
        window_k_ptr=window_k,
        window_v_ptr=window_v,
        list_ptr=None if chosen is None else chosen.ids,
        count_ptr=None if chosen is None else chosen.count,
        k_page=k.stride(0),
        v_page=v.stride(0),
        window_k_page=window_k.stride(0),
        window_v_page=window_v.stride(0),
        max_window_splits=in_window,
        list_part=parts.plan.list_part,
        window_part=parts.plan.window_part,
        PAGE=cache.page_size,
        TILE=tile,
        WHOLE=whole,
        SELECTED=spec.uses[1],
        WINDOWED=spec.uses[2],
        **parts.pointers,
        **query_arguments(q, step.rows, step.scale),
        **shape.keys,
        **shape.values,
        **step.listing,
        **step.choosing,
        **shape.launch(
            tuning.attend_warps,
            stages,
            tuning,
            follows=parts.plan.of_slots > 0,
            registers=tuning.attend_registers,
        ),
    )


def merge(step: Step, parts: Parts, gates: Tensor, gate_logits: bool, out: Tensor) -> None:
    """Put the splits together and weigh the branches."""
    plan = step.slot_plan
    merge_parts(
        step.shape,
        step.rows,
        out,
        parts,
        gates,
        step.tuning,
        SIGMOID=gate_logits,
        STRIDE=step.spec.compress_stride,
        STRICT=step.spec.strict,
        TILE_SLOTS=plan.tile_blocks * plan.slots_per_block,
        RULE=plan.rule,
        MEMORY=0 if step.memory is None else step.memory[0].shape[1],
        **step.listing,
        **step.choosing,
    )
