"""Block importance and exact top-n in plain torch. Leading dimensions `...` are free."""

import torch
from torch import Tensor

from nsa_kernels.spec import SparseSpec

_NO_BLOCK = 1 << 40


def block_scores(
    spec: SparseSpec, logits: Tensor, probs: Tensor, visible: Tensor, num_blocks: int
) -> Tensor:
    """Importance of blocks for a group of query heads.

    logits, probs [..., G, S] as `compressed_attention` gives them, visible [..., S]
    → [..., num_blocks] float32; −inf where a block has no score.
    """
    if spec.importance == "logit_mean":
        return _logit_mean(spec, logits, visible, num_blocks)
    mass = probs.sum(-2)
    per_block, overlap = spec.slots_per_block, spec.strides_per_slot - 1
    length = num_blocks * per_block + overlap
    mass = _fit(mass, length, 0.0)
    if spec.importance == "max_pool":
        return mass.unfold(-1, per_block + overlap, per_block).amax(-1)
    strides = num_blocks * per_block
    by_stride = mass[..., :strides].clone()
    for shift in range(1, overlap + 1):
        by_stride += mass[..., shift : shift + strides]
    return by_stride.unflatten(-1, (num_blocks, per_block)).sum(-1)


def _logit_mean(spec: SparseSpec, logits: Tensor, visible: Tensor, num_blocks: int) -> Tensor:
    """Mean scaled logit over the group and over the block's own slots, once all are visible."""
    per_block = spec.slots_per_block
    length = num_blocks * per_block
    mean = logits.masked_fill(~visible[..., None, :], 0.0).mean(-2)
    exists = torch.arange(length, device=logits.device) >= spec.first_slot
    seen = _fit(visible.to(mean.dtype), length, 0.0).unflatten(-1, (num_blocks, per_block)).sum(-1)
    due = exists.unflatten(-1, (num_blocks, per_block)).sum(-1)
    total = _fit(mean, length, 0.0).unflatten(-1, (num_blocks, per_block)).sum(-1)
    return torch.where((seen == due) & (due > 0), total / due.clamp_min(1), -torch.inf)


def select_blocks(spec: SparseSpec, scores: Tensor, positions: Tensor) -> Tensor:
    """The blocks that queries read.

    scores [..., NB], positions broadcastable to [...] → ids [..., K] ascending, −1 behind the last.
    The forced blocks come first; then the highest score, the lower index on a tie.
    """
    num_blocks = scores.shape[-1]
    blocks = torch.arange(num_blocks, device=scores.device)
    current = (positions // spec.select_block).expand(scores.shape[:-1])[..., None]
    seen = blocks <= current
    forced = seen & ((blocks < spec.init_blocks) | (blocks > current - spec.local_blocks))
    scores = scores.masked_fill(~seen, -torch.inf)
    if spec.selection_floor > 0.0:
        weights = torch.softmax(scores, -1).nan_to_num(0.0)
        scores = scores.masked_fill(weights <= spec.selection_floor, -torch.inf)
    chosen = _top(spec, scores, forced, blocks, current)
    if not spec.forced_counted:
        extra = torch.where(forced, blocks, _NO_BLOCK).sort(-1).values
        chosen = torch.cat([chosen, extra[..., : spec.init_blocks + spec.local_blocks]], -1)
    chosen = chosen.sort(-1).values
    if spec.dense_len > 0:
        chosen = _all_below_dense_len(spec, chosen, seen, blocks, positions)
    return chosen.masked_fill(chosen == _NO_BLOCK, -1)


def _top(
    spec: SparseSpec, scores: Tensor, forced: Tensor, blocks: Tensor, current: Tensor
) -> Tensor:
    """Unordered ids of the top n, `_NO_BLOCK` where there are fewer."""
    n = spec.num_selected
    keyed = scores.masked_fill(forced, torch.inf if spec.forced_counted else -torch.inf)
    if not spec.half_merge:
        return _best(keyed, n)
    border = current // n * n
    split = current >= n
    old = _best(keyed.masked_fill(blocks >= border, -torch.inf), n // 2)
    new = _best(keyed.masked_fill(blocks < border, -torch.inf), n // 2)
    plain = _best(keyed, n)
    merged = torch.cat([old, new], -1)
    return torch.where(split, _fit(merged, n, _NO_BLOCK), _fit(plain, n, _NO_BLOCK))


def _best(keyed: Tensor, n: int) -> Tensor:
    """Ids of the n highest keys above −inf, the lower id on a tie."""
    ordered = keyed.sort(stable=True, dim=-1, descending=True)
    ids = torch.where(ordered.values > -torch.inf, ordered.indices, _NO_BLOCK)
    return ids[..., :n]


def _all_below_dense_len(
    spec: SparseSpec, chosen: Tensor, seen: Tensor, blocks: Tensor, positions: Tensor
) -> Tensor:
    width = max(chosen.shape[-1], min(seen.shape[-1], -(-spec.dense_len // spec.select_block)))
    everything = _fit(torch.where(seen, blocks, _NO_BLOCK), width, _NO_BLOCK)
    dense = (positions < spec.dense_len)[..., None]
    return torch.where(dense, everything, _fit(chosen, width, _NO_BLOCK))


def block_mask(chosen: Tensor, num_blocks: int) -> Tensor:
    """ids [..., K], −1 for none → bool [..., num_blocks]."""
    mask = torch.zeros(*chosen.shape[:-1], num_blocks + 1, dtype=torch.bool, device=chosen.device)
    index = chosen.masked_fill(chosen < 0, num_blocks)
    return mask.scatter_(-1, index, True)[..., :num_blocks]


def _fit(x: Tensor, length: int, fill: float) -> Tensor:
    """Cut or pad the last dimension to `length`."""
    if x.shape[-1] >= length:
        return x[..., :length]
    return torch.nn.functional.pad(x, (0, length - x.shape[-1]), value=fill)
