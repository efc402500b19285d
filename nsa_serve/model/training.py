"""Attention of a batch of whole sequences, for training: the definition, in memory that grows with
the length and not with its square.

Queries are taken in chunks. With gradients, and more than one chunk, what a chunk computed is
thrown away and computed again on the way back, so no matrix over all queries and all keys is ever
held. Tested against `definition.WholeSequence`, values and gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from nsa_kernels.compressed.reference import compressed_attention, visible_slots
from nsa_kernels.geometry import tokens_of_slots
from nsa_kernels.select.reference import block_mask, block_scores, select_blocks
from nsa_kernels.spec import SparseSpec
from nsa_serve.model.attention import Attention, NSABranches
from nsa_serve.model.gates import BranchGates
from nsa_serve.model.heads import Projected
from nsa_serve.model.rope import Rope, Rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What is chosen for training and leaves no trace in a checkpoint."""

    dropout: float = 0.0
    """Share of each layer's two outputs, and of the embedding, that is dropped."""
    differentiable_selection: bool = False
    """Let a loss reach the scores of the blocks that were chosen, straight through the choice.
    Without, φ and the queries learn to rank blocks from the compressed branch alone."""
    query_chunk: int = 512
    """Queries computed at once; memory grows with it, times the length."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Of all sequences, N = sequences · kv heads first."""

    q: Tensor
    """[N, G, T, D]"""
    q_compressed: Tensor
    """[N, G, T, D], in float32"""
    k: Tensor
    v: Tensor
    k_window: Tensor
    v_window: Tensor
    """[N, T, dim]"""
    k_slots: Tensor
    v_slots: Tensor
    """[N, S, dim]"""


class TrainingContext:
    """Attention context of `num_sequences` sequences of equal length, one after the other."""

    def __init__(self, rope: Rope, num_sequences: int, options: TrainingOptions) -> None:
        self._rope, self._num_sequences, self._options = rope, num_sequences, options

    def dense(self, layer: Attention, projected: Projected, rotate: Rotation) -> Tensor:
        """Causal attention [B·T, H, Dv]."""
        heads = layer.heads(projected, rotate)
        q = self._queries(heads.q, layer.num_kv_heads)
        k, v = (self._keys(x) for x in (heads.k, heads.v))
        return self._joined(_attend(q, k, v, layer.scale, is_causal=True))

    def sparse(
        self,
        layer: Attention,
        nsa: NSABranches,
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        """The gated sum of the three branches [B·T, H, Dv]."""
        heads = layer.heads(projected, rotate)
        kv_heads = layer.num_kv_heads
        k, v, k_window, v_window, phi_k, phi_v = (
            self._keys(x)
            for x in (heads.k, heads.v, heads.k_window, heads.v_window, heads.phi_k, heads.phi_v)
        )
        k_slots, v_slots = self._slots(nsa, phi_k, phi_v)
        parts = _Parts(
            q=self._queries(heads.q, kv_heads),
            q_compressed=self._queries(nsa.compressed_query(heads), kv_heads),
            k=k, v=v, k_window=k_window, v_window=v_window, k_slots=k_slots, v_slots=v_slots,
        )  # fmt: skip
        chunks = _Chunks(nsa, parts, layer.scale, self._options.differentiable_selection)
        branches = chunks.compute(self._options.query_chunk)
        a, b, c = (None if branch is None else self._joined(branch) for branch in branches)
        return nsa.weigh(gates, (a, b, c))

    def _slots(self, nsa: NSABranches, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed keys and values [N, S, dim] of what φ reads, [N, T, dim]; slots that do not
        exist are zero."""
        spec, device = nsa.spec, keys.device
        num_slots = spec.num_slots(keys.shape[1])
        slots = torch.arange(min(spec.first_slot, num_slots), num_slots, device=device)
        tokens = tokens_of_slots(slots, spec.compress_block, spec.compress_stride)
        missing = (tokens < 0)[..., None]
        sequences = self._num_sequences

        def windows(x: Tensor) -> Tensor:
            """[B·S, kv_heads, l, dim]"""
            read = x[:, tokens.clamp_min(0)].masked_fill(missing, 0.0)
            return read.unflatten(0, (sequences, -1)).transpose(1, 2).flatten(0, 1)

        def padded(x: Tensor) -> Tensor:
            """[N, S, dim] of [B·S, kv_heads, dim]."""
            x = x.unflatten(0, (sequences, len(slots))).transpose(1, 2).flatten(0, 1)
            return F.pad(x, (0, 0, num_slots - len(slots), 0))

        first = tokens[:, 0].repeat(sequences)
        return (
            padded(nsa.phi_k(windows(keys), first, self._rope)),
            padded(nsa.phi_v(windows(values), first)),
        )

    def _queries(self, x: Tensor, kv_heads: int) -> Tensor:
        """[B·T, H, D] → [N, G, T, D]"""
        x = x.unflatten(0, (self._num_sequences, -1)).unflatten(2, (kv_heads, -1))
        return x.permute(0, 2, 3, 1, 4).flatten(0, 1)

    def _keys(self, x: Tensor) -> Tensor:
        """[B·T, kv_heads, dim] → [N, T, dim]"""
        return x.unflatten(0, (self._num_sequences, -1)).transpose(1, 2).flatten(0, 1)

    def _joined(self, x: Tensor) -> Tensor:
        """[N, G, T, Dv] → [B·T, H, Dv]"""
        x = x.unflatten(0, (self._num_sequences, -1))
        return x.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)


Outputs = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of (compressed, selected, window), [N, G, T, Dv]; None where a branch counts nothing."""


class _Chunks:
    """The branches of one layer, chunk by chunk."""

    def __init__(self, nsa: NSABranches, parts: _Parts, scale: float, differentiable: bool) -> None:
        self._spec, self._memory, self._parts = nsa.spec, nsa.memory, parts
        self._scale, self._differentiable = scale, differentiable

    def compute(self, size: int) -> Outputs:
        """All queries, `size` at a time."""
        length = self._parts.q.shape[2]
        starts = range(0, length, size)
        forget = torch.is_grad_enabled() and len(starts) > 1
        done: list[Outputs] = []
        for start in starts:
            stop = min(start + size, length)
            done.append(
                checkpoint(self._chunk, start, stop, use_reentrant=False)
                if forget
                else self._chunk(start, stop)
            )
        a, b, c = (_joined_chunks([outputs[i] for outputs in done]) for i in range(3))
        return a, b, c

    def _chunk(self, start: int, stop: int) -> Outputs:
        use_compressed, use_selected, use_window = self._spec.uses
        compressed = selected = window = None
        if use_compressed or use_selected:
            compressed, scores = self._compressed(start, stop)
            if use_selected:
                selected = self._selected(start, stop, scores)
        if use_window:
            window = self._window(start, stop)
        return compressed if use_compressed else None, selected, window

    def _compressed(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The branch's output, and scores of blocks [N, C, blocks]."""
        spec, parts = self._spec, self._parts
        q = parts.q_compressed[:, :, start:stop]
        group, count = q.shape[1], stop - start
        num_slots = spec.num_slots(stop)
        positions = torch.arange(start, stop, device=q.device)
        visible = visible_slots(spec, positions, num_slots)
        memory = None
        if self._memory is not None:
            k_memory, v_memory = self._memory
            times = len(q) // len(k_memory), 1, 1
            memory = k_memory.repeat(times), v_memory.repeat(times)
        with torch.autocast(q.device.type, enabled=False):  # scores stay in float32
            result = compressed_attention(
                q.flatten(1, 2),
                parts.k_slots[:, :num_slots],
                parts.v_slots[:, :num_slots],
                visible.repeat(group, 1),
                self._scale,
                memory,
            )
            logits, probs = (
                x.unflatten(1, (group, count)).transpose(1, 2)
                for x in (result.logits, result.probs)
            )
            num_blocks = -(-stop // spec.select_block)
            scores = block_scores(spec, logits, probs, visible, num_blocks)
        assert result.out is not None
        return result.out.unflatten(1, (group, count)).to(parts.v.dtype), scores

    def _selected(self, start: int, stop: int, scores: Tensor) -> Tensor:
        spec, parts = self._spec, self._parts
        positions = torch.arange(start, stop, device=scores.device)
        chosen = select_blocks(spec, scores.detach(), positions)
        blocks = block_mask(chosen, scores.shape[-1])
        keys = torch.arange(stop, device=scores.device)
        in_block = keys // spec.select_block
        seen = blocks[..., in_block] & (keys <= positions[:, None])
        bias = None
        if self._differentiable:
            share = _share(spec, scores)
            bias = (share - share.detach())[..., in_block]  # zero, with a gradient
        q, k, v = parts.q[:, :, start:stop], parts.k[:, :stop], parts.v[:, :stop]
        return _attend(q, k, v, self._scale, seen=seen, bias=bias)

    def _window(self, start: int, stop: int) -> Tensor:
        parts, width = self._parts, self._spec.window
        first = max(0, start - width + 1)
        keys = torch.arange(first, stop, device=parts.q.device)
        distance = torch.arange(start, stop, device=keys.device)[:, None] - keys
        seen = (distance >= 0) & (distance < width)
        q, k, v = parts.q[:, :, start:stop], parts.k_window, parts.v_window
        return _attend(q, k[:, first:stop], v[:, first:stop], self._scale, seen=seen[None])


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    seen: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """q [N, G, C, D], k, v [N, S, dim], seen and bias [N or 1, C, S] → [N, G, C, Dv]. A query that
    sees nothing gives zeros."""
    group = q.shape[1]
    k, v = (x[:, None].expand(-1, group, -1, -1) for x in (k, v))
    if seen is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=is_causal)
    blind = ~seen.any(-1, keepdim=True)
    seen = (seen | blind)[:, None]
    mask = seen
    if bias is not None:
        mask = bias[:, None].to(q.dtype).masked_fill(~seen, -torch.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.masked_fill(blind[:, None], 0.0)


def _share(spec: SparseSpec, scores: Tensor) -> Tensor:
    """Each block's share of a query's importance, 0 to 1: [N, C, blocks]."""
    if spec.importance == "logit_mean":
        return scores.softmax(-1).nan_to_num(0.0)
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-6)


def _joined_chunks(chunks: list[Tensor | None]) -> Tensor | None:
    """Chunks [N, G, C, Dv] of one branch, all there or none."""
    tensors = [chunk for chunk in chunks if chunk is not None]
    return torch.cat(tensors, 2) if tensors else None
