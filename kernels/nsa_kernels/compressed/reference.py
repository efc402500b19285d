"""Attention over compressed slots in plain torch, float32 throughout; float64 of float64."""

from typing import NamedTuple

import torch
from torch import Tensor

from nsa_kernels.geometry import slot_end
from nsa_kernels.spec import SparseSpec
from nsa_kernels.widen import widen


class CompressedResult(NamedTuple):
    """What the compressed branch gives and the selection needs."""

    out: Tensor | None
    """[N, M, Dv] float32; zero where nothing is visible. None where values were not given."""
    logits: Tensor
    """[N, M, S] scaled logits, −inf where invisible."""
    probs: Tensor
    """[N, M, S] softmax over visible slots and memory; zero where invisible."""


def visible_slots(spec: SparseSpec, positions: Tensor, num_slots: int) -> Tensor:
    """Which slots queries at `positions` [...] see: bool [..., num_slots]."""
    slots = torch.arange(num_slots, device=positions.device)
    end = slot_end(slots, spec.compress_stride) + int(spec.strict)
    return (end <= positions[..., None]) & (slots >= spec.first_slot)


def compressed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    visible: Tensor,
    scale: float,
    memory: tuple[Tensor, Tensor] | None = None,
) -> CompressedResult:
    """Softmax over visible slots.

    q [N, M, D], k [N, S, D], v [N, S, Dv] or None, visible broadcastable to [N, M, S], memory
    ([N, m, D], [N, m, Dv]) always visible. No visible slot and no memory gives zeros, never NaN.
    """
    q = widen(q)
    logits = torch.matmul(q, widen(k).transpose(-1, -2)).mul_(scale)
    logits = logits.masked_fill(~visible, -torch.inf)
    if memory is None:
        probs = torch.softmax(logits, -1).masked_fill(~visible.any(-1, keepdim=True), 0.0)
        out = None if v is None else torch.matmul(probs, widen(v))
        return CompressedResult(out, logits, probs)
    memory_k, memory_v = memory
    memory_logits = torch.matmul(q, widen(memory_k).transpose(-1, -2)) * scale
    weights = torch.softmax(torch.cat([memory_logits, logits], -1), -1)
    m = memory_k.shape[-2]
    probs = weights[..., m:]
    out = None
    if v is not None:
        out = torch.matmul(weights[..., :m], widen(memory_v)) + torch.matmul(probs, widen(v))
    return CompressedResult(out, logits, probs)
