"""Rows over poisoned caches, with what the plain torch reference makes of clean ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import CacheLayout, LayerCache
from nsa_kernels.decode import SplitRule, Tuning, sparse_decode
from nsa_kernels.geometry import num_pages_for
from nsa_kernels.metadata import RowGroup
from nsa_kernels.paged.queries import Queries
from nsa_kernels.paged.rows import recent_rows, sparse_rows
from nsa_kernels.spec import SparseSpec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Sizes of one layer."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 8
    value_dim: int = 8
    page_size: int = 16


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """Everything a decode step of one layer reads, on `DEVICE`."""

    spec: SparseSpec
    heads: Heads
    q: Tensor
    q_compressed: Tensor
    gates: Tensor
    cache: LayerCache
    """NaN wherever no token or slot of a row was written."""
    clean: LayerCache
    """The same in float32 with zeros there."""
    rows: DecodeRows
    memory: tuple[Tensor, Tensor] | None
    scale: float

    @property
    def queries(self) -> Queries:
        """In float32, as the reference takes them."""
        memory = None
        if self.memory is not None:
            memory = self.memory[0].float(), self.memory[1].float()
        return Queries(self.q.float(), self.q_compressed.float(), self.scale, memory)

    def groups(self) -> list[tuple[int, RowGroup]]:
        """Each row that is no padding, alone."""
        positions = self.rows.positions.tolist()
        return [
            (i, row_group(self.rows, self.heads.page_size, i, position))
            for i, position in enumerate(positions)
            if position >= 0
        ]

    def expected(self) -> Tensor:
        """[B, H, Dv] float32: zeros for padding."""
        h, dv = self.heads.num_heads, self.heads.value_dim
        out = torch.zeros(len(self.q), h, dv, device=self.q.device)
        gates = self.gates.float().expand(len(self.q), h, 3)
        for i, group in self.groups():
            branches = sparse_rows(self.queries.part(i, i + 1), self.clean, group, self.spec)
            for branch, values in enumerate(branches):
                if values is not None:
                    out[i] += gates[i, :, branch, None] * values[0].float()
        return out

    def expected_dense(self) -> Tensor:
        """[B, H, Dv] float32 of attention over all keys."""
        out = torch.zeros(
            len(self.q), self.heads.num_heads, self.heads.value_dim, device=self.q.device
        )
        for i, group in self.groups():
            q = self.queries.q[i : i + 1]
            out[i] = recent_rows(q, self.clean.k, self.clean.v, group, self.scale, None)[0]
        return out

    def only(self, index: Sequence[int], max_context: int | None = None) -> "DecodeCase":
        """The same rows in another batch, perhaps under another bound."""
        at = torch.tensor(index, device=self.q.device)
        rows = DecodeRows(
            self.rows.positions[at],
            self.rows.block_table[at],
            max_context or self.rows.max_context,
        )
        gates = self.gates if self.gates.shape[0] == 1 else self.gates[at]
        return replace(
            self, q=self.q[at], q_compressed=self.q_compressed[at], gates=gates, rows=rows
        )

    def moved(self, seed: int) -> "DecodeCase":
        """The same rows in other pages."""
        pages = self.cache.k.shape[0]
        generator = torch.Generator().manual_seed(seed)
        place = torch.randperm(pages, generator=generator).to(self.q.device)
        moved = {id(t): torch.empty_like(t).index_copy_(0, place, t) for t in self.cache.tensors}
        fields: dict[str, Any] = {
            name: moved[id(getattr(self.cache, name))]
            for name in CACHES
            if getattr(self.cache, name) is not None
        }
        table = self.rows.block_table
        known = (table >= 0) & (table < pages)
        table = torch.where(known, place.int()[table.clamp(0, pages - 1).long()], table)
        rows = replace(self.rows, block_table=table)
        return replace(self, cache=replace(self.cache, **fields), rows=rows)


CACHES = ("k", "v", "k_window", "v_window", "phi_k", "phi_v", "k_compressed", "v_compressed")
BEYOND = 1_000_000_007
"""What block tables hold beyond a row's own pages: reading there fails or shows."""


def row_group(rows: DecodeRows, page_size: int, row: int, position: int) -> RowGroup:
    """One row as the reference takes it."""
    pages = num_pages_for(position + 1, page_size)
    return RowGroup(
        start=0,
        stop=1,
        positions=rows.positions[row : row + 1].long(),
        block_table=rows.block_table[row : row + 1, :pages].long(),
        last_position=position,
    )


def decode_case(
    spec: SparseSpec,
    positions: Sequence[int],
    heads: Heads | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    independent: bool = False,
    raw_queries: bool = False,
    memory_slots: int = 0,
    max_context: int | None = None,
    seed: int = 0,
) -> DecodeCase:
    """Random rows at `positions` (−1 is padding) in scattered pages."""
    heads = heads or Heads()
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)

    size = heads.page_size
    counts = [num_pages_for(position + 1, size) for position in positions]
    num_pages = sum(counts) + 3
    layout = CacheLayout(
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        value_dim=heads.value_dim,
        page_size=size,
        stride=spec.compress_stride,
        independent_kv=independent,
        keys_only=not spec.uses[0],
    )
    cache = LayerCache.allocate(layout, num_pages, dtype, DEVICE)
    clean = LayerCache.allocate(layout, num_pages, torch.float32, DEVICE)
    for tensor in cache.tensors:
        tensor.fill_(torch.nan)
    bound = max_context or max(*positions, 0) + 1
    width = num_pages_for(bound, size) + 1
    table = torch.full((len(positions), width), BEYOND, dtype=torch.int32)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
    for row, position in enumerate(positions):
        pages = [order.pop() for _ in range(counts[row])]
        table[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        _write_row(cache, clean, spec, pages, position, random)
    b, h, d = len(positions), heads.num_heads, heads.head_dim
    q = random(b, h, d)
    memory = None
    if memory_slots:
        memory = (
            random(heads.num_kv_heads, memory_slots, d),
            random(heads.num_kv_heads, memory_slots, heads.value_dim),
        )
    return DecodeCase(
        spec=spec,
        heads=heads,
        q=q,
        q_compressed=random(b, h, d) if raw_queries else q,
        gates=torch.rand(b, h, 3, generator=generator, device=DEVICE),
        cache=cache,
        clean=clean,
        rows=DecodeRows(
            torch.tensor(positions, dtype=torch.int32, device=DEVICE), table.to(DEVICE), bound
        ),
        memory=memory,
        scale=d**-0.5,
    )


def _write_row(
    cache: LayerCache,
    clean: LayerCache,
    spec: SparseSpec,
    pages: list[int],
    position: int,
    random: object,
) -> None:
    """Tokens 0..position and the slots that they complete, the same values in both caches."""
    assert callable(random)
    slots = range(spec.first_slot, spec.num_slots(position + 1))
    seen: set[int] = set()
    for name in CACHES:
        target = getattr(cache, name)
        if target is None or id(target) in seen:
            continue
        seen.add(id(target))
        entries = slots if name.endswith("compressed") else range(position + 1)
        if not len(entries):
            continue
        _, kv_heads, per_page, dim = target.shape
        index = torch.tensor(entries, device=DEVICE)
        page = torch.tensor(pages, device=DEVICE)[index // per_page]
        values = random(len(entries), kv_heads, dim)
        target[page, :, index % per_page] = values
        getattr(clean, name)[page, :, index % per_page] = values.float()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, infinite where anything is not a number."""
    if not bool(found.isfinite().all()):
        return float("inf")
    return float((found.float() - expected).norm() / expected.norm().clamp_min(1e-30))


SMALL = Tuning(
    compressed_split=SplitRule(small=16, medium=32, large=64, medium_from=32, large_from=128),
    compressed_tile=16,
    select_tile=16,
    list_split=32,
    window_split=32,
    attend_tile=16,
    merge_step=2,
    merge_sums=4,
    select_step=2,
    dense_split=SplitRule(small=16, medium=32, large=64, medium_from=32, large_from=128),
    dense_tile=16,
)
"""Cuts short rows into as many parts as the real constants cut long ones."""


def run_decode(case: DecodeCase, tuning: Tuning = SMALL) -> Tensor:
    """What the kernels make of a case, [B, H, Dv]."""
    return sparse_decode(
        case.q,
        case.q_compressed,
        case.gates,
        case.cache,
        case.rows,
        case.spec,
        case.scale,
        memory=case.memory,
        tuning=tuning,
    )
