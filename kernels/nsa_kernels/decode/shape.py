"""What the launches of one step have in common: sizes, strides, and results in parts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.decode.plan import LOG2E, PartPlan, Tuning, fit, padded


@dataclass(frozen=True, slots=True)
class Shape:
    """B queries [B, H, D] over caches of kv_heads heads, with values of Dv."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    item_bytes: int
    """Of a cache element."""
    device: torch.device

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> "Shape":
        """Of queries over k [pages, kv_heads, P, D], v [pages, kv_heads, P, Dv]."""
        batch, heads, dim = q.shape
        assert k.dtype == v.dtype
        assert q.stride(2) == 1, "a query head must be contiguous"
        assert heads % k.shape[1] == 0
        assert dim == k.shape[3]
        return cls(batch, heads, k.shape[1], dim, v.shape[3], k.element_size(), q.device)

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.heads // self.kv_heads

    @property
    def tile_dims(self) -> int:
        """Elements that one key and its value take in a tile."""
        return padded(self.head_dim) + padded(self.value_dim)

    def fit(self, tile: int, least: int, stages: int) -> tuple[int, int]:
        """(tile, stages) that fit into shared memory, of at least `least` keys at once."""
        return fit(tile, least, stages, self.group, self.head_dim, self.value_dim, self.item_bytes)

    def launch(
        self,
        warps: int,
        stages: int,
        tuning: Tuning,
        *,
        follows: bool = True,
        registers: int | None = None,
    ) -> dict[str, Any]:
        """Launch options of a kernel that reads tiles of keys."""
        wide = padded(self.group) > 32
        options = launch_options(
            max(warps, 8) if wide else warps, stages, tuning, self.device, follows=follows
        )
        # what a group of up to 16 heads keeps of usual sizes fits; more would be spilled
        if registers and padded(self.group) == 16 and self.tile_dims * self.item_bytes <= 512:
            options["maxnreg"] = registers
        return options

    @property
    def keys(self) -> dict[str, int]:
        """The kernels' constants of the group and the keys."""
        group, dim = self.group, self.head_dim
        return {"G": group, "GP": padded(group), "D": dim, "DP": padded(dim)}

    @property
    def values(self) -> dict[str, int]:
        """The kernels' constants of the values."""
        return {"DV": self.value_dim, "DVP": padded(self.value_dim)}

    def parts(self, plan: PartPlan, dtype: torch.dtype = torch.float32) -> "Parts":
        """Room for what the splits of all branches read."""
        pairs = (self.batch, self.kv_heads, plan.total, self.group)
        m, z = (self.empty(*pairs) for _ in range(2))
        return Parts(plan, m, z, self.empty(*pairs, self.value_dim, dtype=dtype))

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory that a kernel fills."""
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Parts:
    """Maximum and sum of each split [B, kv_heads, total, G], its mean value [..., G, Dv]."""

    plan: PartPlan
    m: Tensor
    z: Tensor
    acc: Tensor

    @property
    def pointers(self) -> dict[str, Any]:
        """The kernels' arguments."""
        return {"m_ptr": self.m, "z_ptr": self.z, "acc_ptr": self.acc, "max_parts": self.plan.total}


def head_major(cache: Tensor) -> Tensor:
    """A cache [pages, kv_heads, entries, dim], each page of it contiguous."""
    _, _, entries, dim = cache.shape
    assert cache.stride()[1:] == (entries * dim, dim, 1), "a page must be contiguous"
    return cache


def query_arguments(q: Tensor, rows: DecodeRows, scale: float) -> dict[str, Any]:
    """The kernels' arguments for the queries and what they may read."""
    assert rows.block_table.stride(1) == 1
    return {
        "q_ptr": q,
        "q_row": q.stride(0),
        "q_head": q.stride(1),
        "scale": scale * LOG2E,
        "position_ptr": rows.positions,
        "table_ptr": rows.block_table,
        "table_row": rows.block_table.stride(0),
    }


def launch_options(
    warps: int, stages: int, tuning: Tuning, device: torch.device, *, follows: bool = True
) -> dict[str, Any]:
    """Of one kernel; `follows`: another of the step's kernels comes before it."""
    overlap = tuning.overlap_launches and can_overlap(device)
    options: dict[str, Any] = {
        "num_warps": warps,
        "num_stages": stages,
        "OVERLAP_LAUNCHES": overlap,
    }
    if overlap and follows:
        options["launch_pdl"] = True
    return options


def can_overlap(device: torch.device) -> bool:
    """Whether programmatic dependent launch exists there: NVIDIA, from Hopper on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)
