"""Numbers that every stage of a layer's prefill needs, derived once from a layer's shapes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.prefill.plan import PlanKey, PrefillPlan, Slab, make_plan, slabs
from nsa_kernels.prefill.tiles import next_power_of_2, precision, split_dim, triton_dtype
from nsa_kernels.prefill.tuning import PrefillTuning, Tile, fit_tile, fitted
from nsa_kernels.spec import SparseSpec

LOG2_E = math.log2(math.e)

_MOST_QUERIES = 32
"""Queries whose choices fit into the bits of one list entry."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Shapes and dtype of queries, keys and values."""

    kv_heads: int
    group: int
    """Query heads per kv head."""
    head_dim: int
    value_dim: int
    page_size: int
    compute: torch.dtype
    """The dtype of products: float32 unless queries and caches agree on another."""
    tuning: PrefillTuning

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, tuning: PrefillTuning | None) -> "Heads":
        """q [T, H, D], caches k [pages, kv_heads, P, D], v [pages, kv_heads, P, Dv]."""
        _, kv_heads, page_size, head_dim = k.shape
        compute = torch.promote_types(q.dtype, k.dtype)
        value_dim = v.shape[-1]
        return cls(
            kv_heads=kv_heads,
            group=q.shape[1] // kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            page_size=page_size,
            compute=compute,
            tuning=fitted(tuning, compute, head_dim, value_dim, q.shape[1] // kv_heads),
        )

    @cached_property
    def group_padded(self) -> int:
        """`group` up to a power of two."""
        return next_power_of_2(self.group)

    @cached_property
    def value_padded(self) -> int:
        """Dv up to a power of two of at least 16."""
        return max(16, next_power_of_2(self.value_dim))

    @cached_property
    def flash_queries(self) -> int:
        """Queries of a tile of `flash`."""
        return max(1, self.tuning.flash_rows // self.group_padded)

    @cached_property
    def score_queries(self) -> int:
        """Queries of a tile of `scores`."""
        return max(1, self.tuning.score_columns // self.group_padded)

    @cached_property
    def selected_queries(self) -> int:
        """Queries of a tile of `selected`; divides `score_queries`."""
        wanted = max(1, self.tuning.selected_rows // self.group_padded)
        return min(wanted, self.score_queries, _MOST_QUERIES)

    @cached_property
    def selected_rows(self) -> int:
        """Rows of a tile of `selected`."""
        return max(16, self.selected_queries * self.group_padded)

    @cached_property
    def fixed_top(self) -> bool:
        """Whether logits of a row are taken relative to the maximum of its first keys, where this
        loses nothing; float16 has too few exponents for it."""
        return self.tuning.selected_fixed_top and self.compute != torch.float16

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of every kernel that multiplies with queries."""
        first, rest = split_dim(self.head_dim)
        return {
            "COMPUTE": triton_dtype(self.compute),
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "GROUP_PADDED": self.group_padded,
            "D": self.head_dim,
            "D_FIRST": first,
            "D_REST": rest,
            "PRECISION": precision(self.compute),
        }


class SelectedSteps(NamedTuple):
    """What `selected` reads at a time."""

    keys: int
    blocks: int
    """Blocks that these keys are; 1 if they are a part of one."""
    parts: int
    """Steps that a block takes."""
    stages: int
    """Steps that are loaded at the same time."""


def selected_steps(heads: Heads, block: int) -> SelectedSteps:
    """Steps over blocks of `block` tokens that fit into shared memory."""
    tuning, padded = heads.tuning, next_power_of_2(block)
    blocks = max(1, max(16, tuning.selected_keys) // padded)
    keys = blocks * padded
    wanted = Tile(heads.selected_rows, keys, tuning.selected_stages)
    least = Tile(heads.selected_rows, keys if blocks > 1 else 16, 1)
    fit = fit_tile(wanted, least, heads.compute, heads.head_dim, heads.value_dim)
    return SelectedSteps(fit.keys, blocks, keys // fit.keys, fit.stages)


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What the layers of one kind have in common in a step."""

    heads: Heads
    spec: SparseSpec
    plan: PrefillPlan
    dense_end: int
    """The first position whose query may leave a block out."""
    slabs: list[Slab]
    _kept: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def constants(
        self, stage: str, make: "Callable[[LayerSizes], dict[str, Any]]"
    ) -> dict[str, Any]:
        """Compile-time arguments of a stage's kernel, made at the first layer."""
        if stage not in self._kept:
            self._kept[stage] = make(self)
        return self._kept[stage]


def num_parts(spec: SparseSpec) -> int:
    """Blocks that one slot counts in, at most: the parts of a block's score."""
    if spec.importance == "logit_mean":
        return 1
    return 1 - -(spec.strides_per_slot - 1) // spec.slots_per_block


def layer_sizes(
    chunks: PrefillChunks,
    heads: Heads,
    spec: SparseSpec,
    gather_slots: int,
) -> LayerSizes:
    """Sizes and plan of a layer."""
    compressed, selected, _ = spec.uses
    end = dense_end(spec)
    plan = make_plan(
        chunks,
        PlanKey(
            flash_queries=heads.flash_queries,
            score_queries=heads.score_queries if selected else 0,
            gather_slots=gather_slots if compressed or selected else 0,
            stride=spec.compress_stride,
            dense_end=end,
        ),
    )
    bytes_per_block = 4 * heads.kv_heads * num_parts(spec)
    return LayerSizes(
        heads=heads,
        spec=spec,
        plan=plan,
        dense_end=end,
        slabs=slabs(
            plan.scores,
            heads.score_queries,
            spec.select_block,
            bytes_per_block,
            heads.tuning.slab_bytes,
        ),
    )


def dense_end(spec: SparseSpec) -> int:
    """The least position for which `spec.selects_all` does not hold."""
    low, high = 0, 1 + max(spec.dense_len, spec.num_selected * spec.select_block)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if spec.selects_all(middle) else (low, middle)
    return low
