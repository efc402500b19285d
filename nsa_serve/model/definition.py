"""The definition: attention of one whole sequence in plain torch, without caches or tiles.

Everything that serves is tested against this, and this against references written from the paper
and against the original implementations. Quadratic in memory; differentiable.
"""

import torch
from torch import Tensor

from nsa_kernels.compressed.reference import compressed_attention, visible_slots
from nsa_kernels.geometry import tokens_of_slots
from nsa_kernels.select.reference import block_mask, block_scores, select_blocks
from nsa_kernels.spec import SparseSpec
from nsa_kernels.widen import widen
from nsa_serve.model.attention import Attention, NSABranches
from nsa_serve.model.gates import BranchGates
from nsa_serve.model.heads import Heads, Projected
from nsa_serve.model.rope import Rope, Rotation


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """q [T, H, D], k, v [T, kv_heads, D], seen [T, T] or [kv_heads, T, T] bool → [T, H, Dv].
    A query that sees nothing gives zeros."""
    heads = k.shape[1]
    grouped = q.unflatten(1, (heads, -1))
    logits = widen(torch.einsum("thgd,shd->hgts", grouped, k)) * scale
    seen = seen if seen.ndim == 2 else seen[:, None]
    logits = logits.masked_fill(~seen, -torch.inf)
    probs = logits.softmax(-1).masked_fill(~seen.any(-1, keepdim=True), 0.0).to(v.dtype)
    return torch.einsum("hgts,shd->thgd", probs, v).flatten(1, 2)


class WholeSequence:
    """Attention context of one sequence, all of it at once."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope

    def dense(self, layer: Attention, projected: Projected, rotate: Rotation) -> Tensor:
        """Causal attention [T, H, Dv]."""
        heads = layer.heads(projected, rotate)
        t = len(heads.q)
        return masked_attention(heads.q, heads.k, heads.v, _causal(t, heads.q.device), layer.scale)

    def sparse(
        self,
        layer: Attention,
        nsa: NSABranches,
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        """The gated sum of the three branches [T, H, Dv]."""
        heads = layer.heads(projected, rotate)
        spec, t, device = nsa.spec, len(heads.q), heads.q.device
        causal = _causal(t, device)
        compressed, chosen = self._compressed(layer, nsa, heads)
        blocks = block_mask(chosen, -(-t // spec.select_block))
        seen = causal & blocks.repeat_interleave(spec.select_block, -1)[..., :t]
        selected = masked_attention(heads.q, heads.k, heads.v, seen, layer.scale)
        recent = causal & ~causal.tril(-spec.window)
        window = masked_attention(heads.q, heads.k_window, heads.v_window, recent, layer.scale)
        parts = (compressed, selected, window)
        a, b, c = (part if use else None for part, use in zip(parts, spec.uses, strict=True))
        return nsa.weigh(gates, (a, b, c))

    def _compressed(
        self, layer: Attention, nsa: NSABranches, heads: Heads
    ) -> tuple[Tensor, Tensor]:
        """Compressed branch [T, H, Dv], and the chosen blocks [kv_heads, T, K]."""
        spec, t = nsa.spec, len(heads.q)
        k, v = self._slots(nsa, heads, spec.num_slots(t))
        kv_heads, group = layer.num_kv_heads, layer.num_heads // layer.num_kv_heads
        positions = torch.arange(t, device=heads.q.device)
        visible = visible_slots(spec, positions, k.shape[1])
        q = nsa.compressed_query(heads).unflatten(1, (kv_heads, group)).permute(1, 0, 2, 3)
        result = compressed_attention(
            q.flatten(1, 2), k, v, visible.repeat_interleave(group, 0), layer.scale, nsa.memory
        )
        assert result.out is not None
        scores = block_scores(
            spec,
            result.logits.unflatten(1, (t, group)),
            result.probs.unflatten(1, (t, group)),
            visible,
            -(-t // spec.select_block),
        )
        out = result.out.unflatten(1, (t, group)).transpose(0, 1).flatten(1, 2)
        return out.to(heads.v.dtype), select_blocks(spec, scores, positions)

    def _slots(self, nsa: NSABranches, heads: Heads, num_slots: int) -> tuple[Tensor, Tensor]:
        """Compressed keys and values [kv_heads, S, dim]; slots that do not exist are zero."""
        spec: SparseSpec = nsa.spec
        slots = torch.arange(min(spec.first_slot, num_slots), num_slots, device=heads.q.device)
        tokens = tokens_of_slots(slots, spec.compress_block, spec.compress_stride)
        missing = (tokens < 0)[..., None, None]

        def windows(x: Tensor) -> Tensor:
            return x[tokens.clamp_min(0)].masked_fill(missing, 0.0).transpose(1, 2)

        def padded(x: Tensor) -> Tensor:
            absent = x.new_zeros(num_slots - len(slots), *x.shape[1:])
            return torch.cat([absent, x]).transpose(0, 1)

        first = tokens[:, 0]
        keys = nsa.phi_k(windows(heads.phi_k), first, self.rope)
        return padded(keys), padded(nsa.phi_v(windows(heads.phi_v), first))


def _causal(t: int, device: torch.device) -> Tensor:
    return torch.ones(t, t, dtype=torch.bool, device=device).tril()
