"""What a decode step of a sparse layer is made of, as its launches are told."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.decode.compressed import LOGIT_MEAN, MAX_POOL, NO_MASS, PROB_SUM
from nsa_kernels.decode.plan import ListPlan, PartPlan, SlotPlan, Tuning, power_of_two
from nsa_kernels.decode.shape import Parts, Shape
from nsa_kernels.spec import SparseSpec

Memory = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """What all launches of one step are told."""

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
    def mass(self) -> int:
        """What the kernels keep of every block."""
        kinds = {"prob_sum": PROB_SUM, "logit_mean": LOGIT_MEAN, "max_pool": MAX_POOL}
        kind = kinds[self.spec.importance] if self.scores else NO_MASS
        return kind.value

    @property
    def slot_stages(self) -> tuple[int, int]:
        """(slots read at once, how many such tiles are under way)."""
        tuning = self.tuning
        least = power_of_two(self.spec.slots_per_block)
        return self.shape.fit(tuning.compressed_tile, least, tuning.compressed_stages)

    @property
    def slot_plan(self) -> SlotPlan:
        tile, _ = self.slot_stages
        return SlotPlan.make(self.spec, self.rows.max_context, tile, self.tuning)

    @property
    def list_plan(self) -> ListPlan:
        return ListPlan.make(self.spec, self.rows.max_context, self.tuning)

    def parts(self, q: Tensor) -> Parts:
        """Room for the parts of all branches."""
        uses, plan = self.spec.uses, self.list_plan
        half = self.tuning.half_parts and q.element_size() == 2
        return self.shape.parts(
            PartPlan(
                of_slots=self.slot_plan.max_splits if uses[0] or self.scores else 0,
                merges_slots=uses[0],
                of_list=plan.list_splits if uses[1] else 0,
                of_window=plan.window_splits if uses[2] else 0,
            ),
            q.dtype if half else torch.float32,
        )

    @property
    def listing(self) -> dict[str, int]:
        """Constants of the lists and the window, and of how they are cut."""
        plan = self.list_plan
        return {
            "LISTED": self.scores,
            "CAPACITY": plan.capacity,
            "LIST_SPLIT": plan.list_split,
            "WINDOW": self.spec.window,
            "WINDOW_SPLIT": plan.window_split,
        }

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
