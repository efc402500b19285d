"""A layer whose weights are identities: its keys and values say which token they are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.cache import CacheLayout, LayerCache
from nsa_kernels.dispatch import LayerKernels
from nsa_kernels.spec import SparseSpec
from nsa_kernels.write.averages import Average, Averages, RowSlots
from nsa_kernels.write.rotate import OwnBranches
from nsa_serve.model.device import DeviceStep
from tests.support.oracle.asks import Compressed
from tests.support.oracle.codes import Codes, Who

SCALE = 64.0
"""Of the softmax: e^−64 is nothing beside the numbers that are read."""


@dataclass(frozen=True, kw_only=True)
class OracleShape:
    """A layer, its cache and how much runs over it."""

    spec: SparseSpec
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 32
    value_dim: int = 32
    page_size: int = 16
    dtype: torch.dtype = torch.float32
    independent: bool = False
    """Whether window and φ have keys and values of their own."""
    raw_phi: bool = False
    """Whether φ reads keys before rotation, and rotates its result."""
    learned: bool = False
    """Whether φ is run in torch, over windows that a kernel gathers."""
    weighted: bool = False
    """Whether the values' φ is weighted, not a mean."""
    interleaved: bool = False
    num_pages: int = 24
    max_len: int = 120
    """Tokens of a sequence."""
    max_output: int = 40
    max_seqs: int = 6
    budget: int = 24
    """Tokens of a step."""

    def __post_init__(self) -> None:
        assert not (self.learned and self.raw_phi), "this learned φ rotates nothing"

    @property
    def num_heads(self) -> int:
        """Of queries."""
        return self.kv_heads * self.group

    @property
    def layout(self) -> CacheLayout:
        """Of the layer's cache."""
        return CacheLayout(
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            page_size=self.page_size,
            stride=self.spec.compress_stride,
            independent_kv=self.independent,
            raw_phi_keys=self.raw_phi,
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """What one step's kernels are told."""

    step: DeviceStep
    spec: SparseSpec


Change = Callable[[Launch], Launch]
"""Spoils what the kernels are told."""


@dataclass(slots=True)
class Queries:
    """T queries, and where their answers go."""

    q: Tensor
    """[T, H, D] before rotation"""
    q_compressed: Tensor
    """[T, H, D]"""
    gates: Tensor
    """[T, H, 3]"""
    out: Tensor
    """[T, H, Dv]"""

    @classmethod
    def empty(cls, count: int, shape: OracleShape, device: torch.device) -> "Queries":
        """Zeros; answers of NaN."""

        def zeros(*rest: int) -> Tensor:
            return torch.zeros((count, shape.num_heads, *rest), dtype=shape.dtype, device=device)

        q, q_compressed = (zeros(shape.head_dim) for _ in range(2))
        return cls(q, q_compressed, zeros(3), zeros(shape.value_dim).fill_(torch.nan))


class OracleLayer:
    """Writes and attends as `nsa_serve.model.device` does."""

    def __init__(
        self, shape: OracleShape, kernels: LayerKernels, device: torch.device, poison: float
    ) -> None:
        self.shape, self.device = shape, device
        self._kernels = kernels
        block = shape.spec.compress_block
        self.codes = Codes(
            shape.head_dim, shape.value_dim, block, device, interleaved=shape.interleaved
        )
        self._heads = torch.arange(shape.kv_heads, device=device)
        self._angles = self.codes.angles(shape.max_len + 1)
        self.phi = self._compressed()
        self._averages = self._as_averages()
        self.cache = LayerCache.allocate(shape.layout, shape.num_pages, shape.dtype, device)
        for tensor in self.cache.tensors:
            tensor.fill_(poison)

    def forward(
        self, step: DeviceStep, token_ids: Tensor, queries: Queries, change: Change | None
    ) -> None:
        """Write the step's tokens, whose ids are their origins, and what they complete; answer the
        queries."""
        launch = Launch(step, self.shape.spec)
        if change is not None:
            launch = change(launch)
        q = self._write(launch.step, token_ids, queries.q)
        self._complete(launch.step)
        self._attend(launch, q, queries)

    def _write(self, step: DeviceStep, token_ids: Tensor, q: Tensor) -> Tensor:
        positions = step.positions.long().clamp_min(0)
        k, v = self._tokens(token_ids, positions, 0)
        own = slots = None
        if self.shape.independent:
            k_window, v_window = self._tokens(token_ids, positions, 1)
            k_phi, v_phi = self._tokens(token_ids, positions, 2)
            rotate = not self.shape.raw_phi
            own = OwnBranches(k_window, v_window, k_phi, v_phi, rotate_phi=rotate)
        if step.rows is not None and not self.shape.learned:
            slots = RowSlots(step.rows, self._averages)
        return self._kernels.rotate_and_write(
            q,
            k,
            v,
            self._angles,
            step.positions,
            step.token_rows,
            self.cache,
            interleaved=self.shape.interleaved,
            own=own,
            slots=slots,
        )

    def _complete(self, step: DeviceStep) -> None:
        if step.completed is None:
            return
        if self.shape.learned:
            self._kernels.compress_learned(
                self.cache, step.completed, self.shape.spec, self._key_phi, self._value_phi
            )
        else:
            self._kernels.complete_slots(self.cache, step.completed, self._averages)

    def _attend(self, launch: Launch, q: Tensor, queries: Queries) -> None:
        step = launch.step
        n = 0
        if step.rows is not None:
            n = step.rows.num_rows
            self._kernels.sparse_decode(
                q[:n],
                queries.q_compressed[:n],
                queries.gates[:n],
                self.cache,
                step.rows,
                launch.spec,
                SCALE,
                out=queries.out[:n],
            )
        if step.chunks is not None:
            self._kernels.sparse_prefill(
                q[n:],
                queries.q_compressed[n:],
                queries.gates[n:],
                self.cache,
                step.chunks,
                launch.spec,
                SCALE,
                out=queries.out[n:],
            )

    def _tokens(self, token_ids: Tensor, positions: Tensor, kind: int) -> tuple[Tensor, Tensor]:
        """Keys before rotation, and values: [T, kv_heads, dim]."""
        positions = positions[:, None].expand(-1, self.shape.kv_heads)
        who = Who(token_ids[:, None], positions, self._heads, torch.full_like(positions, kind))
        keys = self.codes.raw_keys(who, positions)
        return keys.to(self.shape.dtype), self.codes.values(who).to(self.shape.dtype)

    def _compressed(self) -> Compressed:
        shape, block = self.shape, self.shape.spec.compress_block
        weights = torch.full((shape.kv_heads, block), 1.0 / block, device=self.device)
        if shape.weighted:
            places = torch.arange(shape.kv_heads * block, device=self.device)
            weights = (0.5 ** (places % 3)).view(shape.kv_heads, block)
        return Compressed(
            key_token=(block - 1 - 3 * self._heads) % block,
            value_weights=weights,
            rotated_at_start=shape.raw_phi,
        )

    def _as_averages(self) -> Averages:
        shape = self.shape
        one_token = torch.nn.functional.one_hot(self.phi.key_token, shape.spec.compress_block)
        table = self._angles if shape.raw_phi else None
        keys = Average(one_token.float(), cos_sin=table, interleaved=shape.interleaved)
        values = Average(self.phi.value_weights if shape.weighted else None)
        return Averages(shape.spec, keys, values)

    def _key_phi(self, windows: Tensor, first: Tensor) -> Tensor:
        return windows[:, self._heads, self.phi.key_token]

    def _value_phi(self, windows: Tensor, first: Tensor) -> Tensor:
        return (windows * self.phi.value_weights[..., None].to(windows.dtype)).sum(-2)
