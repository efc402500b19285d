"""Attention over the paged caches by device kernels: what serves on a GPU."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nsa_kernels.batch import CompletedSlots, DecodeRows, PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.dispatch import LayerKernels
from nsa_kernels.write.averages import Averages, RowSlots
from nsa_kernels.write.rotate import HeadNorm, OwnBranches
from nsa_serve.model.attention import Attention, NSABranches
from nsa_serve.model.averages import averages_of
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.gates import BranchGates
from nsa_serve.model.heads import Projected
from nsa_serve.model.rope import Rope, Rotation

_TABLE_ROWS = 16_384
"""Positions whose angles are computed at once, in float64."""


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step of T tokens: single queries, then chunks."""

    positions: Tensor
    """[T] int32"""
    token_rows: Tensor
    """[T] int64: page · page_size + offset of each token, −1 for padding."""
    rows: DecodeRows | None
    """The first tokens, each of a sequence of its own."""
    chunks: PrefillChunks | None
    """The tokens after them."""
    completed: CompletedSlots | None
    """Slots that complete at the chunks' tokens and, where φ is learned, at the rows'."""


@dataclass(frozen=True, slots=True)
class _Constants:
    """What a layer's kernels need beside its inputs."""

    norm: HeadNorm | None
    averages: Averages | None
    """φ, where it is an average; else φ runs in torch."""
    fixed_gates: Tensor | None
    """[1, H, 3]"""


class DeviceAttention:
    """The caches of a decoder's layers on a device, and everything constant beside them."""

    def __init__(
        self,
        decoder: Decoder,
        caches: list[LayerCache],
        kernels: LayerKernels,
        max_positions: int,
    ) -> None:
        self.caches, self.kernels = caches, kernels
        self.rope = decoder.rope
        self.cos_sin = angle_table(decoder.rope, max_positions, caches[0].k.device)
        self.constants = [self._constants(layer) for layer in decoder.attentions]

    @property
    def lists_row_slots(self) -> bool:
        """Whether a step must list the slots of its single queries: their φ is no average."""
        return any(
            cache.k_compressed is not None and constants.averages is None
            for cache, constants in zip(self.caches, self.constants, strict=True)
        )

    def _constants(self, layer: Attention) -> _Constants:
        norm = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norm = HeadNorm(layer.q_norm.weight, layer.k_norm.weight, layer.q_norm.eps)
        nsa = layer.nsa
        if nsa is None:
            return _Constants(norm, None, None)
        fixed = None
        if nsa.gates is None:
            values = torch.tensor(nsa.nsa.fixed_gates, device=self.cos_sin.device)
            fixed = values.expand(1, layer.num_heads, 3).contiguous()
        averages = averages_of(
            nsa, layer.num_kv_heads, self.cos_sin, interleaved=self.rope.interleaved
        )
        return _Constants(norm, averages, fixed)


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """Attention context of one step."""

    layers: DeviceAttention
    step: DeviceStep

    def dense(self, layer: Attention, projected: Projected, rotate: Rotation) -> Tensor:
        """Write the step's keys and values, then attend to all: [T, H, Dv]."""
        step, kernels = self.step, self.layers.kernels
        cache = self.layers.caches[layer.index]
        q = self._write(layer, projected, None)
        if step.chunks is None:
            assert step.rows is not None
            return kernels.dense.decode(q, cache.k, cache.v, step.rows, layer.scale)
        out = _empty_heads(q, cache.v)
        n = 0
        if step.rows is not None:
            n = step.rows.num_rows
            out[:n] = kernels.dense.decode(q[:n], cache.k, cache.v, step.rows, layer.scale)
        kernels.dense.prefill(q[n:], cache.k, cache.v, step.chunks, layer.scale, out=out[n:])
        return out

    def sparse(
        self,
        layer: Attention,
        nsa: NSABranches,
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        """Write keys, values and the slots that complete, then the branches, gated."""
        step, kernels = self.step, self.layers.kernels
        constants = self.layers.constants[layer.index]
        cache = self.layers.caches[layer.index]
        raw = projected.q
        kept_raw = None
        if nsa.nsa.compressed_rope == "none" and constants.norm is not None:
            raw = kept_raw = torch.empty(raw.shape, dtype=raw.dtype, device=raw.device)
        q = self._write(layer, projected, kept_raw)
        if step.completed is not None:
            if constants.averages is not None:
                kernels.complete_slots(cache, step.completed, constants.averages)
            else:
                phi_k = partial(nsa.phi_k, rope=self.layers.rope)
                kernels.compress_learned(cache, step.completed, nsa.spec, phi_k, nsa.phi_v)
        q_compressed = raw if nsa.nsa.compressed_rope == "none" else q
        fixed = constants.fixed_gates
        if gates is None:
            assert fixed is not None
            gates = BranchGates(fixed, logits=False)
        out = _empty_heads(q, cache.v)
        n = 0
        if step.rows is not None:
            n = step.rows.num_rows
            kernels.sparse_decode(
                q[:n],
                q_compressed[:n],
                gates.values if fixed is not None else gates.values[:n],
                cache,
                step.rows,
                nsa.spec,
                layer.scale,
                memory=nsa.memory,
                gate_logits=gates.logits,
                out=out[:n],
            )
        if step.chunks is not None:
            kernels.sparse_prefill(
                q[n:],
                q_compressed[n:],
                gates.values if fixed is not None else gates.values[n:],
                cache,
                step.chunks,
                nsa.spec,
                layer.scale,
                memory=nsa.memory,
                gate_logits=gates.logits,
                out=out[n:],
            )
        return out

    def _write(self, layer: Attention, projected: Projected, raw: Tensor | None) -> Tensor:
        """Rotated queries; the step's keys and values, and the slots that its single queries
        complete where φ is an average, go to the pages."""
        step = self.step
        constants = self.layers.constants[layer.index]
        own = slots = None
        if layer.nsa is not None:
            if projected.own is not None:
                rotate_phi = layer.nsa.nsa.compressed_rope == "before"
                own = OwnBranches(*projected.own, rotate_phi)
            if constants.averages is not None and step.rows is not None:
                slots = RowSlots(step.rows, constants.averages)
        return self.layers.kernels.rotate_and_write(
            projected.q,
            projected.k,
            projected.v,
            self.layers.cos_sin,
            step.positions,
            step.token_rows,
            self.layers.caches[layer.index],
            interleaved=self.layers.rope.interleaved,
            norm=constants.norm,
            raw_queries=raw,
            own=own,
            slots=slots,
        )


def angle_table(rope: Rope, max_positions: int, device: torch.device) -> Tensor:
    """cos, then sin, of every pair at every position: [positions, head_dim] float32."""
    parts = [
        torch.cat(rope.angles(torch.arange(start, min(start + _TABLE_ROWS, max_positions),
                                           device=device)), -1)
        for start in range(0, max_positions, _TABLE_ROWS)
    ]  # fmt: skip
    return torch.cat(parts)


def _empty_heads(q: Tensor, values: Tensor) -> Tensor:
    return torch.empty((*q.shape[:2], values.shape[-1]), dtype=q.dtype, device=q.device)
