"""A decode step of one sparse layer: four launches, or five where blocks are scored by pooling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.decode.attend import attend_blocks
from nsa_kernels.decode.compressed import (
    LOGIT_MEAN,
    MAX_POOL,
    NO_MASS,
    PROB_SUM,
    attend_slots,
    pool_slots,
)
from nsa_kernels.decode.merge import merge_parts
from nsa_kernels.decode.plan import (
    TUNING,
    ListPlan,
    SlotPlan,
    Tuning,
    attend_tile,
    padded,
    power_of_two,
    tile_for,
)
from nsa_kernels.decode.select import choose_blocks
from nsa_kernels.decode.shape import Parts, Shape, head_major, launch_options, query_arguments
from nsa_kernels.spec import SparseSpec

Memory = tuple[Tensor, Tensor]


def sparse_decode(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    rows: DecodeRows,
    spec: SparseSpec,
    scale: float,
    *,
    memory: Memory | None = None,
    gate_logits: bool = False,
    out: Tensor | None = None,
    tuning: Tuning = TUNING,
) -> Tensor:
    """The three branches of B single queries, weighed by their gates: [B, H, Dv] in q's dtype.

    q, q_compressed [B, H, D] with a last stride of 1; gates [B or 1, H or 1, 3] of any strides: the
    weights of (compressed, selected, window), or logits of which the sigmoid is taken; memory
    ([kv_heads, m, D], [kv_heads, m, Dv]) compressed tokens that every query sees. Softmax, scores
    and sums are float32. Rows at position −1 give zeros.
    """
    step = _Step(cache, rows, spec, scale, tuning, memory, Shape.of(q, cache.k, cache.v))
    if out is None:
        out = torch.empty((*q.shape[:2], step.shape.value_dim), dtype=q.dtype, device=q.device)
    compressed = None
    chosen = None
    if spec.uses[0] or step.scores:
        slots = step.attend_slots(q_compressed)
        compressed = slots.parts
        if step.scores:
            chosen = step.choose_blocks(q_compressed, slots)
    near = step.attend_blocks(q, chosen) if spec.uses[1] or spec.uses[2] else None
    step.merge(compressed if spec.uses[0] else None, near, gates, gate_logits, out)
    return out


@dataclass(frozen=True, slots=True)
class _Slots:
    """What the compressed slots gave."""

    plan: SlotPlan
    parts: Parts
    mass: Tensor | None
    reference: Tensor | None
    arrivals: Tensor | None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The blocks of each row and kv head: ids [B, kv_heads, capacity] ascending, and how many."""

    ids: Tensor
    count: Tensor


@dataclass(frozen=True, slots=True)
class _Near:
    """What the selected blocks and the window gave."""

    selected: Parts | None
    window: Parts | None


@dataclass(frozen=True, slots=True)
class _Step:
    cache: LayerCache
    rows: DecodeRows
    spec: SparseSpec
    scale: float
    tuning: Tuning
    memory: Memory | None
    shape: Shape

    @property
    def scores(self) -> bool:
        """Whether any row may have to choose."""
        return self.spec.uses[1] and not self.spec.selects_all(self.rows.max_context - 1)

    @property
    def shared(self) -> bool:
        """Whether the selected branch and the window read the same keys and values."""
        cache, uses = self.cache, self.spec.uses
        same = cache.k is cache.k_window and cache.v is cache.v_window
        return same and uses[1] and uses[2]

    @property
    def mass(self) -> int:
        """What the kernels keep of every block."""
        kinds = {"prob_sum": PROB_SUM, "logit_mean": LOGIT_MEAN, "max_pool": MAX_POOL}
        kind = kinds[self.spec.importance] if self.scores else NO_MASS
        return kind.value

    @property
    def slot_plan(self) -> SlotPlan:
        return SlotPlan.make(
            self.spec,
            self.rows.max_context,
            self.shape.tile_dims,
            self.shape.item_bytes,
            self.tuning,
        )

    @property
    def list_plan(self) -> ListPlan:
        return ListPlan.make(self.spec, self.rows.max_context, self.tuning)

    @property
    def choosing(self) -> dict[str, int]:
        """Constants of the rows that select everything they see."""
        spec = self.spec
        sure = spec.importance != "logit_mean" and spec.selection_floor == 0.0
        return {
            "BLOCK": spec.select_block,
            "DENSE_LEN": spec.dense_len,
            "SURE_BLOCKS": spec.num_selected if sure else 0,
        }

    def slot_constants(self, plan: SlotPlan) -> dict[str, Any]:
        """Constants of which slots exist, and how they lie in tiles."""
        return {
            "STRIDE": self.spec.compress_stride,
            "STRICT": self.spec.strict,
            "FIRST": self.spec.first_slot,
            "PER_BLOCK": plan.slots_per_block,
            "TILE_BLOCKS": plan.tile_blocks,
            "SPILLS": plan.spills,
            "RULE": plan.rule,
            "MEMORY": 0 if self.memory is None else self.memory[0].shape[1],
        }

    def attend_slots(self, q: Tensor) -> _Slots:
        """Compressed attention in splits, and the mass of the blocks if some row chooses."""
        shape, plan, cache = self.shape, self.slot_plan, self.cache
        assert cache.k_compressed is not None
        k, v = head_major(cache.k_compressed), None
        if self.spec.uses[0]:
            assert cache.v_compressed is not None
            v = head_major(cache.v_compressed)
        parts = shape.parts(plan.max_splits, v is not None)
        pairs, blocks = (shape.batch, shape.kv_heads), plan.max_tiles * plan.tile_blocks
        mass = reference = arrivals = None
        if self.scores:
            arrivals = shape.empty(*pairs, dtype=torch.int32)
            per_block = (shape.group,) if self.mass == PROB_SUM.value else ()
            mass = shape.empty(*pairs, 1 + plan.spills, blocks, *per_block)
            if self.mass == PROB_SUM.value:
                reference = shape.empty(*pairs, plan.max_tiles, shape.group)
        memory_k, memory_v = (None, None) if self.memory is None else self.memory
        constants = self.slot_constants(plan)
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
            OVERLAP=self.spec.strides_per_slot - 1,
            MASS=self.mass,
            VALUES=v is not None,
            MEMORY_PADDED=padded(constants["MEMORY"]),
            **query_arguments(q, self.rows, self.scale),
            **shape.keys,
            **shape.values,
            **constants,
            **self.choosing,
            **shape.launch(
                self.tuning.compressed_warps,
                self.tuning.compressed_stages,
                plan.tile_blocks * plan.padded_block,
                self.tuning,
                follows=False,
            ),
        )
        return _Slots(plan, parts, mass, reference, arrivals)

    def pool_slots(self, q: Tensor, slots: _Slots) -> None:
        """The largest mass in every block, which needs every row's sum first."""
        plan, k = slots.plan, self.cache.k_compressed
        assert k is not None
        pool_slots[(self.shape.batch, self.shape.kv_heads, plan.max_splits)](
            k_ptr=k,
            m_ptr=slots.parts.m,
            z_ptr=slots.parts.z,
            mass_ptr=slots.mass,
            k_page=k.stride(0),
            max_splits=plan.max_splits,
            max_tiles=plan.max_tiles,
            PAGE_ROWS=k.shape[2],
            PLACES=plan.padded_block,
            OVERLAP=self.spec.strides_per_slot - 1,
            STEP=self.tuning.merge_step,
            **query_arguments(q, self.rows, self.scale),
            **self.shape.keys,
            **self.slot_constants(plan),
            **self.choosing,
            **self.shape.launch(
                self.tuning.compressed_warps,
                self.tuning.compressed_stages,
                plan.tile_blocks * plan.padded_block,
                self.tuning,
            ),
        )

    def choose_blocks(self, q: Tensor, slots: _Slots) -> _Chosen:
        """The blocks that every row reads, unless it reads all of them."""
        if self.spec.importance == "max_pool":
            self.pool_slots(q, slots)
        shape, spec, plan, slot_plan = self.shape, self.spec, self.list_plan, slots.plan
        pairs = (shape.batch, shape.kv_heads)
        chosen = _Chosen(
            shape.empty(*pairs, plan.capacity, dtype=torch.int32),
            shape.empty(*pairs, dtype=torch.int32),
        )
        candidates = shape.empty(*pairs, plan.max_chunks, plan.capacity, dtype=torch.int64)
        choose_blocks[(*pairs, plan.max_chunks)](
            position_ptr=self.rows.positions,
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
            MASS=self.mass,
            N=spec.num_selected,
            INIT=spec.init_blocks,
            LOCAL=spec.local_blocks,
            COUNTED=spec.forced_counted,
            HALF=spec.half_merge,
            FLOOR=spec.selection_floor,
            CAPACITY=plan.capacity,
            TILE=plan.tile,
            STEP=self.tuning.merge_step,
            **self.slot_constants(slot_plan),
            **self.choosing,
            **launch_options(self.tuning.select_warps, 1, self.tuning),
        )
        return chosen

    def attend_blocks(self, q: Tensor, chosen: _Chosen | None) -> _Near:
        """The selected branch and the window, in splits."""
        shape, spec, plan, cache = self.shape, self.spec, self.list_plan, self.cache
        selects, windowed = spec.uses[1], spec.uses[2]
        in_window = plan.window_splits if windowed else 0
        in_list = plan.list_splits if selects else 0
        selected_splits = in_list + (in_window if self.shared else 0)
        selected = shape.parts(selected_splits) if selects else None
        window = shape.parts(in_window) if windowed else None
        k, v = head_major(cache.k), head_major(cache.v)
        window_k, window_v = head_major(cache.k_window), head_major(cache.v_window)
        tile = tile_for(self.tuning.attend_tile, shape.tile_dims, shape.item_bytes, self.tuning)
        tile, whole = attend_tile(spec.select_block, tile, self.tuning.attend_split)
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
            SPLIT=self.tuning.attend_split,
            TILE=tile,
            WHOLE=whole,
            SELECTED=selects,
            LISTED=chosen is not None,
            WINDOWED=windowed,
            SHARED=self.shared,
            **query_arguments(q, self.rows, self.scale),
            **shape.keys,
            **shape.values,
            **self.choosing,
            **shape.launch(
                self.tuning.attend_warps,
                self.tuning.attend_stages,
                tile,
                self.tuning,
                follows=chosen is not None,
            ),
        )
        return _Near(selected, window)

    def merge(
        self,
        compressed: Parts | None,
        near: _Near | None,
        gates: Tensor,
        gate_logits: bool,
        out: Tensor,
    ) -> None:
        """Put the splits together and weigh the branches."""
        plan = self.slot_plan
        merge_parts(
            self.shape,
            self.rows,
            out,
            compressed,
            None if near is None else near.selected,
            None if near is None else near.window,
            gates,
            self.tuning,
            SIGMOID=gate_logits,
            STRIDE=self.spec.compress_stride,
            STRICT=self.spec.strict,
            TILE_SLOTS=plan.tile_blocks * plan.slots_per_block,
            RULE=plan.rule,
            MEMORY=0 if self.memory is None else self.memory[0].shape[1],
        )
