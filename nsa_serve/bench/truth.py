"""What a case's answer should be, where it is checked: some rows, by the definition, in float32."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.dense import sdpa
from nsa_kernels.spec import SparseSpec
from nsa_serve.bench import definition
from nsa_serve.bench.cases import DecodeCase, PrefillCase

_CHECKED = 64
"""Consecutive queries of a prompt that are checked at its start, middle and end."""


class DecodeTruth:
    """Of the first and the last row, over the first set of pages."""

    def __init__(self, case: DecodeCase, spec: SparseSpec) -> None:
        self._case, self._spec = case, spec
        self._rows = sorted({0, len(case.q) - 1})

    def nsa_error(self, out: Tensor) -> float:
        """Relative error of NSA's output [B, H, Dv]."""
        return relative_error([out[i : i + 1] for i in self._rows], self._nsa)

    def dense_error(self, out: Tensor) -> float:
        """Relative error of dense attention's output."""
        out = out.view(len(self._case.q), -1, out.shape[-1])
        return relative_error([out[i : i + 1] for i in self._rows], self._dense)

    @cached_property
    def _nsa(self) -> list[Tensor]:
        case = self._case
        return [
            _nsa(case.q[i : i + 1], case.gates[i : i + 1], copy, case.context - 1, self._spec)
            for i, copy in self._copies()
        ]

    @cached_property
    def _dense(self) -> list[Tensor]:
        q, first = self._case.q, self._case.context - 1
        return [_dense(q[i : i + 1], copy, first) for i, copy in self._copies()]

    def _copies(self) -> Sequence[tuple[int, "_Copy"]]:
        table = self._case.rows[0].block_table
        cache = self._case.pool.cache
        return [(i, definition.in_float32(cache, table[i : i + 1])) for i in self._rows]


class PrefillTruth:
    """Of some queries at the start, in the middle and at the end of a prompt."""

    def __init__(self, case: PrefillCase, spec: SparseSpec) -> None:
        self._case, self._spec = case, spec
        length = min(_CHECKED, case.tokens)
        starts = sorted({0, (case.tokens - length) // 2, case.tokens - length})
        self._parts = [slice(start, start + length) for start in starts]

    def nsa_error(self, q: Tensor, out: Tensor) -> float:
        """Relative error of NSA's output [T, H, Dv] for queries q."""
        copy, gates = self._copy, self._case.gates
        want = [_nsa(q[p], gates[p], copy, p.start, self._spec) for p in self._parts]
        return relative_error([out[p] for p in self._parts], want)

    def dense_error(self, out: Tensor) -> float:
        """Relative error of dense attention's output [T, H, Dv]."""
        return relative_error([out[p] for p in self._parts], self._dense)

    @property
    def neighbour_overlap(self) -> float:
        """Of the queries that are alike, at the end."""
        case, last = self._case, self._parts[-1]
        return definition.neighbour_overlap(
            case.alike[last],
            case.pool.cache,
            case.chunks.block_table,
            last.start,
            self._spec,
            case.pool.heads.scale,
        )

    @cached_property
    def _dense(self) -> list[Tensor]:
        return [_dense(self._case.q[p], self._copy, p.start) for p in self._parts]

    @cached_property
    def _copy(self) -> "_Copy":
        return definition.in_float32(self._case.pool.cache, self._case.chunks.block_table)


_Copy = tuple[LayerCache, Tensor]


def relative_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """‖got − want‖ / ‖want‖ over all parts."""
    pairs = list(zip(got, want, strict=True))
    wrong = sum(float((g.float() - w).square().sum()) for g, w in pairs)
    return float((wrong / sum(float(w.square().sum()) for _, w in pairs)) ** 0.5)


def _nsa(q: Tensor, gates: Tensor, copy: _Copy, first: int, spec: SparseSpec) -> Tensor:
    """Queries [M, H, D] at positions from `first` on."""
    cache, table = copy
    chunks = PrefillChunks([first], [len(q)], table)
    q = q.float()
    return definition.sparse_prefill(q, q, gates, cache, chunks, spec, _scale(q))


def _dense(q: Tensor, copy: _Copy, first: int) -> Tensor:
    cache, table = copy
    chunks = PrefillChunks([first], [len(q)], table)
    return sdpa.prefill(q.float(), cache.k, cache.v, chunks, _scale(q))


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)
