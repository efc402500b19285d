"""A step: every layer of every row, by a team of threads that meet at barriers."""

from functools import cache
from typing import Any

import numpy as np

from nsa_serve.model import fused
from nsa_serve.model.compiled.barrier import take, wait_for_all
from nsa_serve.model.compiled.heads import attend, scratch_for
from nsa_serve.model.compiled.jit import OPTIONS, Floats, compiled
from nsa_serve.model.compiled.products import (
    OUTPUTS,
    Product,
    empty_rows,
    multiply,
    multiply_add,
    multiply_gated,
    round_row,
    start,
    stop,
)
from nsa_serve.model.compiled.rows import rms_norm
from nsa_serve.model.compiled.state import Caches, Rows, Shared, Sizes, SparseRule, Weights

MANY_ROWS = 64
"""From so many rows per member on, members take parts of the rows, all outputs of them, one part
after the other, so that a slow core takes fewer; below, each computes outputs of its own, for all
rows, so that weights are read once."""
PART = 64
"""Rows of a part."""


@cache
def make_step(version: str) -> Any:
    """The compiled step. numba keeps it on disk for as long as this file and `version` stay the
    same."""

    def step(
        member: int, team: int, sizes: Sizes, rule: SparseRule, weights: Weights, caches: Caches,
        rows: Rows, shared: Shared,
    ) -> None:  # fmt: skip
        """One step. Every member calls it with the same arguments but its own number."""
        assert version
        x, qkv, attended, inner = rows.x, shared.qkv, shared.attended, shared.inner
        count, hidden = x.shape
        apart = count >= MANY_ROWS * team
        part = PART if apart else count
        narrow = empty_rows(part, hidden)
        middle = empty_rows(part, attended.shape[1])
        wide = empty_rows(part, inner.shape[1])
        magnitudes = np.empty(part, np.float32)
        normed = np.empty(hidden, np.float32)
        scratch = scratch_for(sizes, rule, caches, rows)
        eps, counter, taken, met = np.float32(sizes.eps), shared.counter, shared.taken, shared.met
        mine = 0 if apart else member
        everyone = 1 if apart else team
        start()
        for layer in range(sizes.num_layers):
            at = part * take(taken, 3 * layer) if apart else 0
            while at < count:
                own = slice(at, min(at + part, count))
                norm_rows(x[own], weights.norms[2 * layer], eps, normed, narrow, magnitudes)
                begin, end = share(qkv.shape[1] // OUTPUTS, mine, everyone)
                multiply(weights.qkv, layer, narrow, magnitudes, begin, end, qkv[own])
                at = part * take(taken, 3 * layer) if apart else count
            met += team
            wait_for_all(counter, met)
            met = attend(member, team, layer, sizes, rule, caches, rows, shared, scratch, met)
            at = part * take(taken, 3 * layer + 2) if apart else 0
            while at < count:
                own = slice(at, min(at + part, count))
                round_rows(attended[own], middle, magnitudes)
                begin, end = share(hidden // OUTPUTS, mine, everyone)
                multiply_add(weights.output, layer, middle, magnitudes, begin, end, x[own])
                if not apart:
                    met += team
                    wait_for_all(counter, met)
                norm_rows(x[own], weights.norms[2 * layer + 1], eps, normed, narrow, magnitudes)
                begin, end = share(2 * inner.shape[1] // OUTPUTS, mine, everyone)
                multiply_gated(weights.gate_up, layer, narrow, magnitudes, begin, end, inner[own])
                if not apart:
                    met += team
                    wait_for_all(counter, met)
                round_rows(inner[own], wide, magnitudes)
                begin, end = share(hidden // OUTPUTS, mine, everyone)
                multiply_add(weights.down, layer, wide, magnitudes, begin, end, x[own])
                at = part * take(taken, 3 * layer + 2) if apart else count
            met += team
            wait_for_all(counter, met)
        stop()
        for row in range(member, count, team):
            rms_norm(x[row], weights.norms[2 * sizes.num_layers], eps, rows.hidden[row])
        wait_for_all(counter, met + team)

    return fused.kept(step, **OPTIONS)


@cache
def make_head(version: str) -> Any:
    """The compiled head, likewise."""

    def head(
        member: int, team: int, product: Product, hidden: Floats, logits: Floats, shared: Shared
    ) -> None:
        """hidden [N, hidden] → logits [N, vocab], the vocabulary padded."""
        assert version
        start()
        count = hidden.shape[0]
        rounded, magnitudes = empty_rows(count, hidden.shape[1]), np.empty(count, np.float32)
        for row in range(count):
            magnitudes[row] = round_row(hidden[row], rounded, row)
        first, last = share(logits.shape[1] // OUTPUTS, member, team)
        multiply(product, 0, rounded, magnitudes, first, last, logits)
        stop()
        wait_for_all(shared.counter, shared.met + team)

    return fused.kept(head, **OPTIONS)


@compiled
def share(length: int, member: int, team: int) -> tuple[int, int]:
    """A member's part of `length` things."""
    return length * member // team, length * (member + 1) // team


@compiled
def norm_rows(
    x: Floats, weight: Floats, eps: np.float32, normed: Floats, rows: Any, magnitudes: Floats
) -> None:
    """The norms of x [R, hidden], rounded."""
    for row in range(x.shape[0]):
        rms_norm(x[row], weight, eps, normed)
        magnitudes[row] = round_row(normed, rows, row)


@compiled
def round_rows(x: Floats, rows: Any, magnitudes: Floats) -> None:
    """x [R, length], rounded."""
    for row in range(x.shape[0]):
        magnitudes[row] = round_row(x[row], rows, row)
