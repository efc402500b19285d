"""What a row of logits should be sampled with, in float64, one step after the other."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from nsa_serve.params import SamplingParams

Array = npt.NDArray[np.float64]


def probabilities(
    logits: Sequence[float],
    params: SamplingParams,
    *,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    stop: Collection[int] = (),
) -> Array:
    """Probability of each token; penalties, biases, stops, temperature, min-p, top-k, top-p."""
    row = np.array(logits, dtype=np.float64)
    for token in {*prompt, *output}:
        by = params.repetition_penalty
        row[token] = row[token] / by if row[token] > 0 else row[token] * by
    for token, count in Counter(output).items():
        row[token] -= params.presence_penalty + params.frequency_penalty * count
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if len(output) < params.min_tokens:
        row[list(stop)] = -np.inf
    weights = np.exp((row - row.max()) / params.temperature)
    weights /= weights.sum()
    weights[weights < params.min_p * weights.max()] = 0.0
    order = np.argsort(-weights, kind="stable")
    if params.top_k > 0:
        weights[order[params.top_k :]] = 0.0
    weights /= weights.sum()
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= params.top_p]] = 0.0
    return np.asarray(weights / weights.sum())
