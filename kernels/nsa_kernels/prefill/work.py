"""What every stage of a layer's prefill is given."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.prefill.plan import PlanKey
from nsa_kernels.prefill.tiles import next_power_of_2
from nsa_kernels.prefill.tuning import PrefillTuning
from nsa_kernels.spec import SparseSpec

LOG2_E = math.log2(math.e)

_MOST_QUERIES = 32
"""Queries whose choices fit into the bits of one list entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWork:
    """Arguments of `sparse_prefill`, checked, and what follows from their shapes."""

    q: Tensor
    q_compressed: Tensor
    gates: Tensor
    out: Tensor
    cache: LayerCache
    spec: SparseSpec
    scale: float
    memory: tuple[Tensor, Tensor] | None
    gate_logits: bool
    tuning: PrefillTuning

    @property
    def compute(self) -> torch.dtype:
        """The dtype of products: float32 unless queries and caches agree on another."""
        return torch.promote_types(self.q.dtype, self.cache.k.dtype)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.cache.k.shape[1]

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.q.shape[1] // self.kv_heads

    @property
    def group_padded(self) -> int:
        """`group` up to a power of two."""
        return next_power_of_2(self.group)

    @property
    def head_dim(self) -> int:
        """D"""
        return self.q.shape[2]

    @property
    def value_dim(self) -> int:
        """Dv"""
        return self.cache.v.shape[3]

    @property
    def page_size(self) -> int:
        """P"""
        return self.cache.k.shape[2]

    @property
    def flash_queries(self) -> int:
        """Queries of a tile of `flash`."""
        return max(1, self.tuning.flash_rows // self.group_padded)

    @property
    def score_queries(self) -> int:
        """Queries of a tile of `scores`."""
        return max(1, self.tuning.score_columns // self.group_padded)

    @property
    def selected_queries(self) -> int:
        """Queries of a tile of `selected`; divides `score_queries`."""
        wanted = max(1, self.tuning.selected_rows // self.group_padded)
        return min(wanted, self.score_queries, _MOST_QUERIES)

    @property
    def dense_end(self) -> int:
        """The first position whose query may leave a block out."""
        return dense_end(self.spec)

    @property
    def gate_strides(self) -> tuple[int, int, int]:
        """Of token (0 where all share one), head and branch."""
        token, head, branch = self.gates.stride()
        return 0 if self.gates.shape[0] == 1 else token, head, branch

    def plan_key(self, gather_slots: int) -> PlanKey:
        """What the plan of this work depends on besides its chunks."""
        return PlanKey(
            flash_queries=self.flash_queries,
            score_queries=self.score_queries if self.spec.uses[1] else 0,
            gather_slots=gather_slots if self.spec.uses[0] or self.spec.uses[1] else 0,
            stride=self.spec.compress_stride,
            dense_end=self.dense_end,
        )


def dense_end(spec: SparseSpec) -> int:
    """The least position for which `spec.selects_all` does not hold."""
    low, high = 0, 1 + max(spec.dense_len, spec.num_selected * spec.select_block)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if spec.selects_all(middle) else (low, middle)
    return low
