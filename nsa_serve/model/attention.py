"""Attention layers, NSA and dense: projections, φ, gates. How it is computed is an argument."""

from typing import Protocol

import torch
from torch import Tensor, nn

from nsa_kernels.paged.queries import Branches
from nsa_kernels.spec import SparseSpec
from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.model.compressors import make_compressor
from nsa_serve.model.gates import Gates, combine, fixed_gates
from nsa_serve.model.heads import Heads
from nsa_serve.model.linear import Joined, join
from nsa_serve.model.norm import RMSNorm
from nsa_serve.model.rope import Rope, Rotation


class AttentionContext(Protocol):
    """Computes attention: over a whole sequence (the definition) or over paged caches."""

    def dense(self, layer: "Attention", heads: Heads) -> Tensor:
        """Causal attention [T, H, Dv]."""

    def sparse(self, layer: "Attention", nsa: "NSABranches", heads: Heads) -> Branches:
        """(compressed, selected, window), each [T, H, Dv], None where it cannot contribute."""


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
        self.compress_k, self.compress_v = (
            make_compressor(
                nsa.compressor, kv_heads=kv, dim=dim, block=block, hidden=hidden, shared=shared
            )
            for dim in (dk, dv)
        )
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
        values: Tensor = self.compress_v(windows)
        return values

    @property
    def memory(self) -> tuple[Tensor, Tensor] | None:
        """Learned compressed tokens ([kv_heads, m, D], [kv_heads, m, Dv])."""
        if self.k_memory is None or self.v_memory is None:
            return None
        return self.k_memory, self.v_memory

    def compressed_query(self, heads: Heads) -> Tensor:
        """The queries that meet compressed keys."""
        return heads.q_raw if self.nsa.compressed_rope == "none" else heads.q

    def weigh(self, x: Tensor, heads: Heads, branches: Branches) -> Tensor:
        """Gate the branches: [T, H, Dv]."""
        if self.gates is not None:
            return combine(self.gates(x, heads.q_raw), branches)
        only = [b for b in branches if b is not None]
        if len(only) == 1 and 1.0 in self.nsa.fixed_gates:
            return only[0]
        return combine(fixed_gates(self.nsa, x.device), branches)


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
        self.qkv: Joined | None = None
        self.o_proj = nn.Linear(h * dv, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = RMSNorm(dk, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(dk, config.rms_norm_eps) if config.qk_norm else None
        self.nsa: NSABranches | None = None
        if config.kinds[index] == "nsa":
            assert config.nsa is not None
            self.nsa = NSABranches(config, config.nsa)

    def join(self) -> None:
        """Make one matrix of the projections: for inference only, not to be undone."""
        self.qkv = join(self, "q_proj", "k_proj", "v_proj")

    def heads(self, x: Tensor, rotate: Rotation) -> Heads:
        """Project and rotate x [T, hidden]."""
        q, k, v = self.qkv(x) if self.qkv else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q_raw = self._split(q, self.q_norm)
        k_raw = self._split(k, self.k_norm)
        v = v.unflatten(-1, (-1, self.value_dim))
        q, k = rotate(torch.cat([q_raw, k_raw], 1)).split([self.num_heads, self.num_kv_heads], 1)
        if self.nsa is None:
            return Heads(q, q_raw, k, v, k, v, k, v)
        before = self.nsa.nsa.compressed_rope == "before"
        if not self.nsa.own_kv:
            return Heads(q, q_raw, k, v, k, v, k if before else k_raw, v)
        k_win, v_win, k_phi, v_phi = (self.nsa.get_submodule(name)(x) for name in OWN_KV)
        k_win, k_phi = self._split(k_win, self.k_norm), self._split(k_phi, self.k_norm)
        v_win, v_phi = (t.unflatten(-1, (-1, self.value_dim)) for t in (v_win, v_phi))
        k_phi = rotate(k_phi) if before else k_phi
        return Heads(q, q_raw, k, v, rotate(k_win), v_win, k_phi, v_phi)

    def _split(self, x: Tensor, norm: RMSNorm | None) -> Tensor:
        x = x.unflatten(-1, (-1, self.head_dim))
        return x if norm is None else norm(x)

    def forward(self, x: Tensor, rotate: Rotation, context: AttentionContext) -> Tensor:
        """x [T, hidden], normed → [T, hidden]."""
        heads = self.heads(x, rotate)
        if self.nsa is None:
            out = context.dense(self, heads)
        else:
            out = self.nsa.weigh(x, heads, context.sparse(self, self.nsa, heads))
        return self.o_proj(out.to(x.dtype).flatten(1))


def _learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))
