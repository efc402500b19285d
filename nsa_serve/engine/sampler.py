"""From logits to tokens. What a row gets depends on its own logits, parameters and place only."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import randbits

import torch
from torch import Tensor

from nsa_serve.engine.constraint import Constraint, flags_of
from nsa_serve.outputs import Logprob, TokenLogprobs
from nsa_serve.params import SamplingParams

_MASK = (1 << 64) - 1
_CANDIDATES = 1024
"""Candidates that are sorted first where top-k does not say; a row that needs more is sorted
whole."""


@dataclass(slots=True)
class SamplingState:
    """What the sampler keeps of one sequence."""

    params: SamplingParams
    prompt_token_ids: list[int]
    stop_token_ids: frozenset[int]
    """Not sampled before min_tokens."""
    seed: int = field(default_factory=lambda: randbits(64))
    constraint: Constraint | None = None
    num_prompt_logprobs: int = 0
    """Prompt tokens whose log-probabilities were reported: not again after a preemption."""

    @property
    def plain(self) -> bool:
        """Whether its logits are used as they are."""
        p = self.params
        return (
            p.presence_penalty == 0.0
            and p.frequency_penalty == 0.0
            and p.repetition_penalty == 1.0
            and not p.logit_bias
            and p.min_tokens == 0
            and self.constraint is None
        )

    @property
    def failure(self) -> str | None:
        """Why nothing can be sampled any more, if so."""
        return None if self.constraint is None else self.constraint.failure

    def may_not_stop(self, output: Sequence[int]) -> bool:
        """Whether stop tokens must not be sampled yet; they may where nothing else is allowed."""
        if len(output) >= self.params.min_tokens or not self.stop_token_ids:
            return False
        constraint = self.constraint
        return constraint is None or not constraint.leaves_only(self.stop_token_ids, output)


def sampling_state(
    params: SamplingParams,
    prompt_token_ids: list[int],
    eos_token_ids: tuple[int, ...],
    constraint: Constraint | None = None,
) -> SamplingState:
    """State of a new sequence."""
    eos = () if params.ignore_eos else eos_token_ids
    stop = frozenset(params.stop_token_ids) | frozenset(eos)
    state = SamplingState(params, prompt_token_ids, stop, constraint=constraint)
    if params.seed is not None:
        state.seed = params.seed & _MASK
    return state


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the place in the sequence only, so that
    neither the batch nor a preemption changes what is sampled (splitmix64)."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def sample(logits: Tensor, states: list[SamplingState], outputs: list[list[int]]) -> list[int]:
    """One token per row: logits [N, vocab] float32, and each row's output so far.

    The token of a state that comes out with a `failure` means nothing.
    """
    if not all(state.plain for state in states):
        logits = torch.stack(
            [
                row if state.plain else _processed(row, state, output)
                for row, state, output in zip(logits, states, outputs, strict=True)
            ]
        )
    tokens = logits.argmax(-1).tolist()
    random = [i for i, state in enumerate(states) if not state.params.greedy]
    for i, token in zip(random, _draw(logits, states, outputs, random), strict=True):
        tokens[i] = token
    return tokens


def _processed(row: Tensor, state: SamplingState, output: list[int]) -> Tensor:
    """Penalties, biases, constraint and forbidden stops of one row."""
    p, row = state.params, row.clone()
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(list({*state.prompt_token_ids, *output}), device=row.device)
        values = row[seen]
        row[seen] = torch.where(
            values > 0, values / p.repetition_penalty, values * p.repetition_penalty
        )
    if output and (p.presence_penalty != 0.0 or p.frequency_penalty != 0.0):
        ids, counts = torch.tensor(output, device=row.device).unique(return_counts=True)
        row[ids] -= p.presence_penalty + p.frequency_penalty * counts
    if p.logit_bias:
        ids = torch.tensor(list(p.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(p.logit_bias.values()), device=row.device)
    if state.constraint is not None:
        allowed = flags_of(state.constraint.allowed(output), len(row))
        row[torch.from_numpy(~allowed).to(row.device)] = -torch.inf
    if state.may_not_stop(output):
        row[torch.tensor(list(state.stop_token_ids), device=row.device)] = -torch.inf
    return row


def _draw(
    logits: Tensor, states: list[SamplingState], outputs: list[list[int]], rows: list[int]
) -> list[int]:
    """Sample the given rows by inverting their cumulative distribution at one uniform number."""
    if not rows:
        return []
    params = [states[i].params for i in rows]
    device = logits.device
    temperature = torch.tensor([p.temperature for p in params], device=device)
    temperature = temperature.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    below = logits[rows] - logits[rows].amax(-1, keepdim=True)  # first: dividing may overflow
    probs = torch.softmax(below / temperature, -1)
    numbers = torch.tensor(
        [uniform(states[i].seed, len(states[i].prompt_token_ids) + len(outputs[i])) for i in rows],
        dtype=torch.float64,  # float32 would round up to 1
        device=device,
    )
    tokens = [0] * len(rows)
    free = [j for j, p in enumerate(params) if not _filtered(p)]
    if free:
        for j, token in zip(free, _invert(probs[free], numbers[free]).tolist(), strict=True):
            tokens[j] = token
    for j, p in enumerate(params):
        if _filtered(p):
            kept, ids = _filter(probs[j], p)
            tokens[j] = int(ids[_invert(kept[None], numbers[j : j + 1])])
    return tokens


def _filtered(p: SamplingParams) -> bool:
    return p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0


def _filter(probs: Tensor, p: SamplingParams) -> tuple[Tensor, Tensor]:
    """The candidates left by min-p, top-k and top-p, in this order: (probabilities, ids).

    Not normalised, and in the order of their ids: in that of their probabilities, two that change
    places by a rounding would change what a seed samples.
    """
    limit = min(p.top_k, len(probs)) if p.top_k > 0 else len(probs)
    if p.min_p > 0.0:
        probs = torch.where(probs >= p.min_p * probs.max(), probs, 0.0)
    kept, ids = _highest(probs, limit if p.top_k > 0 else min(limit, _CANDIDATES))
    total = kept.sum() if p.top_k > 0 else probs.sum(dtype=torch.float64)
    if p.top_k <= 0 and bool(kept.sum() < p.top_p * total):
        kept, ids = _highest(probs, limit)
    inside = kept > 0
    if p.top_p < 1.0:
        inside &= kept.cumsum(0) - kept < p.top_p * total
    ids, order = ids[inside].sort()
    return kept[inside][order], ids


def _highest(probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest probabilities, float64, and their ids; of equal ones those of lower ids, first:
    logits that were computed in bfloat16 are full of equals."""
    if count == len(probs):
        kept, ids = torch.sort(probs, stable=True, descending=True)
        return kept.double(), ids
    kept, ids = probs.topk(count)
    equals = (probs == kept[-1]).nonzero().squeeze(-1)
    above = ids[kept > kept[-1]].sort().values
    ids = torch.cat([above, equals[: count - len(above)]])
    kept, order = probs[ids].double().sort(stable=True, descending=True)
    return kept, ids[order]


def _invert(probs: Tensor, numbers: Tensor) -> Tensor:
    """Index at which each row's cumulative probability [N, V] passes its number [N] of the sum."""
    cumulative = probs.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Below the sum even after rounding, so that what has no probability is never reached.
    target = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def logprobs_of(logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
    """Log-probabilities of tokens [N] under logits [N, vocab], before any parameter's effect."""
    all_logprobs = torch.log_softmax(logits, -1)
    chosen = all_logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = (all_logprobs > chosen).sum(-1).add_(1).tolist()
    best = all_logprobs.topk(min(num_top, logits.shape[-1]), -1)
    return [
        TokenLogprobs(
            Logprob(token, value, rank),
            [Logprob(i, v, r) for r, (i, v) in enumerate(zip(ids, values, strict=True), 1)],
        )
        for token, value, rank, ids, values in zip(
            token_ids,
            chosen.squeeze(-1).tolist(),
            ranks,
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    ]
