"""What rows of logits are sampled with, and how weights are counted."""

from dataclasses import dataclass

from torch import Tensor

MASS_BITS = 42
"""A token's weight is exp((logit − highest) / temperature) · 2^42, cut to an integer. Integer sums
are exact in any order; those of 2^20 tokens fit 63 bits."""

IN_PROMPT = 1 << 30

TEMPERATURE, TOP_K, TOP_P, MIN_P, NUMBER = range(5)
"""Rows of `RowParams.table`."""


@dataclass(frozen=True, slots=True)
class RowParams:
    """Parameters of N rows, and what is known of them on the host."""

    table: Tensor | None
    """[5, N] float64: temperature (0 is greedy), top-k (0 keeps all), top-p, min-p, and a number
    in [0, 1) at which the row's distribution is inverted. None: all rows are greedy."""
    filtered: bool
    """Whether any row has a top-k or top-p."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """Repetition, presence and frequency penalties of R of N rows."""

    rows: Tensor
    """[R] int32 of the logits"""
    counts: Tensor
    """[S, vocab] int32: how often a token is in the output, plus `IN_PROMPT` if in the prompt."""
    count_rows: Tensor
    """[R] int32 of `counts`"""
    values: Tensor
    """[3, R] float32: repetition, presence, frequency."""
