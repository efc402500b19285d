"""What a decode step of a sparse layer is made of, as its launches are told."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.decode.compressed import LOGIT_MEAN, MAX_POOL, NO_MASS, PROB_SUM
from nsa_kernels.decode.plan import ListPlan, SlotPlan, Tuning
from nsa_kernels.decode.shape import Shape
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
