"""Attention layers, NSA and dense: projections, φ, gates. How it is computed is an argument."""

from typing import Protocol

import torch
from torch import Tensor, nn

from nsa_kernels.paged.queries import Branches
from nsa_kernels.spec import SparseSpec
from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.model.compressors import make_compressor
from nsa_serve.model.gates import BranchGates, Gates, combine, fixed_gates
from nsa_serve.model.heads import Heads, Projected
from nsa_serve.model.linear import Joined, join
from nsa_serve.model.norm import RMSNorm
from nsa_serve.model.rope import Rope, Rotation


class AttentionContext(Protocol):
    """Computes attention: over a whole sequence (the definition) or over paged caches."""

    def dense(self, layer: "Attention", projected: Projected, rotate: Rotation) -> Tensor:
        """Causal attention [T, H, Dv]."""

    def sparse(
        self,
        layer: "Attention",
        nsa: "NSABranches",
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        """The gated sum of the three branches [T, H, Dv]; no gates: the dialect's fixed ones."""


def sparse_spec(nsa: NSAConfig) -> SparseSpec:
    """What the kernels must know of a dialect."""
    return SparseSpec(
        compress_block=nsa.compress_block,
        compress_stride=nsa.compress_stride,
        select_block=nsa.select_block,
        num_selected=nsa.num_selected,
        window=nsa.window,
        first_slot=nsa.first_slot,
        strict=nsa.visibility == "strict",
        importance=nsa.importance,
        init_blocks=nsa.init_blocks,
        local_blocks=nsa.local_blocks,
        forced_counted=nsa.forced_counted,
        half_merge=nsa.selection == "half_merge",
        selection_floor=nsa.selection_floor,
        dense_len=nsa.dense_len,
        uses=nsa.uses,
    )


OWN_KV = ("k_window", "v_window", "k_phi", "v_phi")


class NSABranches(nn.Module):
    """What NSA adds to an attention layer: φ, its positions and memory, gates, own K/V."""

    def __init__(self, config: ModelConfig, nsa: NSAConfig) -> None:
        super().__init__()
        self.nsa, self.spec = nsa, sparse_spec(nsa)
        h, kv = config.num_heads, config.num_kv_heads
        dk, dv = config.head_dim, config.value_dim
        self.own_kv = nsa.branch_kv == "independent"
        if self.own_kv:
            for name, size in zip(OWN_KV, (kv * dk, kv * dv) * 2, strict=True):
                self.add_module(
                    name, nn.Linear(config.hidden_size, size, bias=config.attention_bias)
                )
        block, hidden, shared = nsa.compress_block, nsa.compressor_hidden, nsa.compressor_shared
        self.compress_k, own_v = (
            make_compressor(
                nsa.compressor,
                kv_heads=kv,
                dim=dim,
                block=block,
                hidden=hidden,
                shared=shared,
                act=nsa.compressor_act,
                layers=nsa.compressor_layers,
                attention_heads=nsa.compressor_heads,
            )
            for dim in (dk, dv)
        )
        self.compress_v: nn.Module | None = None if nsa.compressor_tied else own_v
        self.k_positions = _learned(kv, block, dk) if nsa.intra_block_positions != "none" else None
        self.v_positions = _learned(kv, block, dv) if nsa.intra_block_positions == "kv" else None
        m = nsa.memory_slots
        self.k_memory = _learned(kv, m, dk) if m else None
        self.v_memory = _learned(kv, m, dv) if m else None
        self.gates = (
            None
            if nsa.gate == "none"
            else Gates(nsa, hidden_size=config.hidden_size, num_heads=h, kv_heads=kv, head_dim=dk)
        )

    def phi_k(self, windows: Tensor, first: Tensor, rope: Rope) -> Tensor:
        """Compressed keys of windows [S, kv_heads, l, D] whose first tokens are at `first` [S]."""
        if self.k_positions is not None:
            windows = windows + self.k_positions
        keys: Tensor = self.compress_k(windows)
        if self.nsa.compressed_rope == "block_start":
            keys = rope.at(first, keys.dtype)(keys)
        return keys

    def phi_v(self, windows: Tensor, first: Tensor) -> Tensor:
        """Compressed values of windows [S, kv_heads, l, Dv]."""
        if self.v_positions is not None:
            windows = windows + self.v_positions
        values: Tensor = self.value_compressor(windows)
        return values

    @property
    def value_compressor(self) -> nn.Module:
        """φ of the values."""
        return self.compress_k if self.compress_v is None else self.compress_v

    @property
    def memory(self) -> tuple[Tensor, Tensor] | None:
        """Learned compressed tokens ([kv_heads, m, D], [kv_heads, m, Dv])."""
        if self.k_memory is None or self.v_memory is None:
            return None
        return self.k_memory, self.v_memory

    def compressed_query(self, heads: Heads) -> Tensor:
        """The queries that meet compressed keys."""
        return heads.q_raw if self.nsa.compressed_rope == "none" else heads.q

    def weigh(self, gates: BranchGates | None, branches: Branches) -> Tensor:
        """Gate the branches: [T, H, Dv]."""
        if gates is not None:
            return combine(gates.weights, branches)
        only = [b for b in branches if b is not None]
        if len(only) == 1 and 1.0 in self.nsa.fixed_gates:
            return only[0]
        return combine(fixed_gates(self.nsa, only[0].device), branches)


class Attention(nn.Module):
    """One attention layer of a decoder, NSA or dense."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim, self.value_dim = config.head_dim, config.value_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.scale = config.head_dim**-0.5
        h, kv, dk, dv = config.num_heads, config.num_kv_heads, config.head_dim, config.value_dim
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, h * dk, bias=bias)
        self.k_proj = nn.Linear(hidden, kv * dk, bias=bias)
        self.v_proj = nn.Linear(hidden, kv * dv, bias=bias)
        self.joined: Joined | None = None
        self.o_proj = nn.Linear(h * dv, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = RMSNorm(dk, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(dk, config.rms_norm_eps) if config.qk_norm else None
        self.nsa: NSABranches | None = None
        if config.kinds[index] == "nsa":
            assert config.nsa is not None
            self.nsa = NSABranches(config, config.nsa)

    def join(self) -> None:
        """Make one matrix of the projections: for inference only, not to be undone."""
        self.joined = join(self, *self._projections())

    def _projections(self) -> list[str]:
        """Linear layers that read the layer's input: q, k, v, then those of NSA."""
        names = ["q_proj", "k_proj", "v_proj"]
        if self.nsa is None:
            return names
        if self.nsa.own_kv:
            names += [f"nsa.{name}" for name in OWN_KV]
        gates = self.nsa.gates
        biased = self.q_proj.bias is not None
        projection = None if gates is None else gates.projection
        if projection is not None and (projection.bias is not None) == biased:
            names.append("nsa.gates.out")
        return names

    def project(self, x: Tensor) -> tuple[Projected, BranchGates | None]:
        """Projections of x [T, hidden], and the gates."""
        if self.joined is not None:
            parts = self.joined(x)
        else:
            parts = tuple(self.get_submodule(name)(x) for name in self._projections())
        q, k, v = (self._split(part, i) for i, part in enumerate(parts[:3]))
        if self.nsa is None:
            return Projected(q, k, v), None
        own = None
        if self.nsa.own_kv:
            k_window, v_window, k_phi, v_phi = (
                self._split(part, 1 + i % 2) for i, part in enumerate(parts[3:7])
            )
            own = k_window, v_window, k_phi, v_phi
        projected = Projected(q, k, v, own)
        gates = self.nsa.gates
        if gates is None:
            return projected, None
        if len(parts) > 3 + 4 * self.nsa.own_kv:
            return projected, gates.of(parts[-1])
        return projected, gates(self.normed(q, self.q_norm) if gates.from_query else x)

    def heads(self, projected: Projected, rotate: Rotation) -> Heads:
        """Norm and rotate."""
        v = projected.v
        q_raw = self.normed(projected.q, self.q_norm)
        k_raw = self.normed(projected.k, self.k_norm)
        q, k = rotate(torch.cat([q_raw, k_raw], 1)).split([self.num_heads, self.num_kv_heads], 1)
        if self.nsa is None:
            return Heads(q, q_raw, k, v, k, v, k, v)
        before = self.nsa.nsa.compressed_rope == "before"
        if projected.own is None:
            return Heads(q, q_raw, k, v, k, v, k if before else k_raw, v)
        k_window, v_window, k_phi, v_phi = projected.own
        k_window = rotate(self.normed(k_window, self.k_norm))
        k_phi = self.normed(k_phi, self.k_norm)
        k_phi = rotate(k_phi) if before else k_phi
        return Heads(q, q_raw, k, v, k_window, v_window, k_phi, v_phi)

    def _split(self, x: Tensor, which: int) -> Tensor:
        """[T, heads · dim] → [T, heads, dim] of queries (0), keys (1) or values (2)."""
        return x.unflatten(-1, (-1, self.value_dim if which == 2 else self.head_dim))

    @staticmethod
    def normed(x: Tensor, norm: RMSNorm | None) -> Tensor:
        """x [T, heads, dim], or its norm where the layer has one."""
        return x if norm is None else norm(x)

    def forward(self, x: Tensor, rotate: Rotation, context: AttentionContext) -> Tensor:
        """x [T, hidden], normed → [T, hidden]."""
        projected, gates = self.project(x)
        if self.nsa is None:
            out = context.dense(self, projected, rotate)
        else:
            out = context.sparse(self, self.nsa, projected, rotate, gates)
        return self.o_proj(out.to(x.dtype).flatten(1))


def _learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))
