"""Drawing tokens in plain torch, by sorting: what the kernels are tested against."""

import torch
from torch import Tensor

from nsa_kernels.sample.params import (
    IN_PROMPT,
    MASS_BITS,
    MIN_P,
    NUMBER,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Penalties,
    RowParams,
)


def draw(logits: Tensor, params: RowParams) -> Tensor:
    """A token id [N] int64 for each row of logits [N, vocab] of any float type; −1 where the
    highest is no number (NaN or infinite)."""
    logits = logits.float()
    best, token_ids = logits.max(-1)
    if params.table is not None:
        masses = kept_masses(logits, params)
        greedy = params.table[TEMPERATURE] == 0.0
        token_ids = torch.where(greedy, token_ids, invert(masses, params.table[NUMBER]))
    return torch.where(best.isfinite(), token_ids, -1)


def penalise(logits: Tensor, penalties: Penalties) -> None:
    """Apply them to logits [N, vocab] float32, in place."""
    rows = penalties.rows.long()
    counts = penalties.counts[penalties.count_rows.long()]
    repetition, presence, frequency = penalties.values[:, :, None]
    x = logits[rows]
    x = torch.where(counts > 0, torch.where(x > 0, x / repetition, x * repetition), x)
    times = counts % IN_PROMPT
    logits[rows] = torch.where(times > 0, x - (presence + frequency * times), x)


def kept_masses(logits: Tensor, params: RowParams) -> Tensor:
    """Weights [N, vocab] int64, 0 for what min-p, top-k or top-p removes. Tokens are ordered by
    logit, the lower id first on a tie, so each of the three keeps a prefix."""
    table = params.table
    assert table is not None
    tiny = torch.finfo(torch.float32).tiny
    temperature = table[TEMPERATURE].float().clamp_min(tiny)[:, None]
    weights = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    weights = torch.where(weights >= table[MIN_P].float()[:, None], weights, 0.0)
    masses = (weights * 2.0**MASS_BITS).nan_to_num(0.0).to(torch.int64)
    if not params.filtered:
        return masses
    order = torch.sort(logits, stable=True, dim=-1, descending=True).indices
    ordered = masses.gather(-1, order)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    top_k, top_p = table[TOP_K][:, None], table[TOP_P][:, None]
    ordered = torch.where((top_k == 0) | (rank < top_k), ordered, 0)
    before = ordered.cumsum(-1) - ordered
    limit = (top_p * ordered.sum(-1, keepdim=True)).ceil()
    ordered = torch.where((top_p == 1.0) | (before < limit), ordered, 0)
    return torch.zeros_like(masses).scatter(-1, order, ordered)


def invert(masses: Tensor, numbers: Tensor) -> Tensor:
    """The index [N] at which each row's cumulative mass [N, vocab] passes its number's share."""
    cumulative = masses.cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum((numbers * total).to(torch.int64), total - 1)[:, None]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp_max(masses.shape[-1] - 1)
