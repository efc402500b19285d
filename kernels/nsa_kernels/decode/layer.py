"""A decode step of one sparse layer: four launches, or five where blocks are scored by pooling."""

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.decode.launches import attend, choose, compress, merge
from nsa_kernels.decode.plan import TUNING, Tuning
from nsa_kernels.decode.shape import Shape
from nsa_kernels.decode.step import Memory, Step
from nsa_kernels.spec import SparseSpec


def sparse_decode(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    rows: DecodeRows,
    spec: SparseSpec,
    scale: float,
    *,
    memory: Memory | None = None,
    gate_logits: bool = False,
    out: Tensor | None = None,
    tuning: Tuning = TUNING,
) -> Tensor:
    """The three branches of B single queries, weighed by their gates: [B, H, Dv] in q's dtype.

    q, q_compressed [B, H, D] with a last stride of 1; gates [B or 1, H or 1, 3] of any strides: the
    weights of (compressed, selected, window), or logits of which the sigmoid is taken; memory
    ([kv_heads, m, D], [kv_heads, m, Dv]) compressed tokens that every query sees. Softmax, scores
    and sums are float32. Rows at position −1 give zeros.
    """
    step = Step(cache, rows, spec, scale, tuning, memory, Shape.of(q, cache.k, cache.v))
    if out is None:
        out = torch.empty((*q.shape[:2], step.shape.value_dim), dtype=q.dtype, device=q.device)
    parts = step.parts(q)
    chosen = None
    if spec.uses[0] or step.scores:
        slots = compress(step, q_compressed, parts)
        if step.scores:
            chosen = choose(step, q_compressed, parts, slots)
    if spec.uses[1] or spec.uses[2]:
        attend(step, q, parts, chosen)
    merge(step, parts, gates, gate_logits, out)
    return out


def chosen_blocks(
    q_compressed: Tensor,
    cache: LayerCache,
    rows: DecodeRows,
    spec: SparseSpec,
    scale: float,
    *,
    memory: Memory | None = None,
    tuning: Tuning = TUNING,
) -> list[list[list[int]]]:
    """Blocks that `sparse_decode` reads in the selected branch, ascending, of each row and kv head.

    Found by the same launches; waits for the device.
    """
    shape = Shape.of(q_compressed, cache.k, cache.v)
    step = Step(cache, rows, spec, scale, tuning, memory, shape)
    ids: list[list[list[int]]] = []
    counts: list[list[int]] = []
    if step.scores:
        parts = step.parts(q_compressed)
        chosen = choose(step, q_compressed, parts, compress(step, q_compressed, parts))
        ids, counts = chosen.ids.tolist(), chosen.count.tolist()
    return [
        [list(range(position // spec.select_block + 1)) for _ in range(shape.kv_heads)]
        if spec.selects_all(position)
        else [of[:count] for of, count in zip(ids[row], counts[row], strict=True)]
        for row, position in enumerate(rows.positions.tolist())
    ]
