"""The paged caches of one layer. One page id addresses all of them.

φ reads `phi_k` and `phi_v`. Where they are what the selected branch stores (shared K/V, φ over
rotated keys), they are the same tensors; otherwise they are pages of their own, so that a slot
can always be made again from its page and the pages before it.
"""

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """Shapes of a layer's caches; `stride` None is a dense layer, which has no slots."""

    num_kv_heads: int
    head_dim: int
    value_dim: int
    page_size: int
    stride: int | None = None
    independent_kv: bool = False
    raw_phi_keys: bool = False
    """Whether φ's keys are stored apart (they are, too, if `independent_kv`)."""
    keys_only: bool = False
    """Whether compressed values are never read, so not stored."""

    @property
    def elements_per_token(self) -> dict[str, float]:
        """Cache elements that one token costs, by what they hold."""
        per_head = self.num_kv_heads
        both = per_head * (self.head_dim + self.value_dim)
        elements = {"kv": float(both)}
        if self.stride is not None:
            value = 0 if self.keys_only else self.value_dim
            elements["compressed"] = per_head * (self.head_dim + value) / self.stride
            if self.independent_kv:
                elements["window"] = float(both)
                elements["phi"] = float(both)
            elif self.raw_phi_keys:
                elements["phi"] = float(per_head * self.head_dim)
        return elements


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """Tokens: [pages, kv_heads, P, dim]; slots: [pages, kv_heads, P // d, dim]."""

    page_size: int
    k: Tensor
    v: Tensor
    k_window: Tensor
    v_window: Tensor
    phi_k: Tensor
    phi_v: Tensor
    k_compressed: Tensor | None = None
    v_compressed: Tensor | None = None

    @classmethod
    def allocate(
        cls, layout: CacheLayout, num_pages: int, dtype: torch.dtype, device: torch.device
    ) -> "LayerCache":
        """Zeroed caches of `num_pages` pages."""

        def pages(entries: int, dim: int) -> Tensor:
            return _zeros((num_pages, layout.num_kv_heads, entries, dim), dtype, device)

        p, dk, dv = layout.page_size, layout.head_dim, layout.value_dim
        k, v = pages(p, dk), pages(p, dv)
        if layout.stride is None:
            return cls(page_size=p, k=k, v=v, k_window=k, v_window=v, phi_k=k, phi_v=v)
        own = layout.independent_kv
        slots = p // layout.stride
        return cls(
            page_size=p,
            k=k,
            v=v,
            k_window=pages(p, dk) if own else k,
            v_window=pages(p, dv) if own else v,
            phi_k=pages(p, dk) if own or layout.raw_phi_keys else k,
            phi_v=pages(p, dv) if own else v,
            k_compressed=pages(slots, dk),
            v_compressed=None if layout.keys_only else pages(slots, dv),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """Every distinct tensor once."""
        all_of_them = (
            self.k,
            self.v,
            self.k_window,
            self.v_window,
            self.phi_k,
            self.phi_v,
            self.k_compressed,
            self.v_compressed,
        )
        return list({id(t): t for t in all_of_them if t is not None}.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all distinct tensors."""
        return sum(t.nbytes for t in self.tensors)

    def erase(self, pages: Tensor) -> None:
        """Zero pages [N]: what is not finite spoils whoever has the page next, since an entry that
        is masked has weight 0, and 0 · NaN is NaN."""
        for tensor in self.tensors:
            tensor[pages] = 0.0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU of memory that the kernel gives when a page is first written, which makes
    the allocation instant and leaves unused cache to others."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, max(math.prod(shape) * dtype.itemsize, 1))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # or the first token in 2 MiB waits for all of them
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)
