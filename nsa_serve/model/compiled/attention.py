"""Attention of a tile over paged caches."""

import numpy as np

from nsa_serve.model.compiled import planes
from nsa_serve.model.compiled.jit import Floats, Indices, compiled
from nsa_serve.model.compiled.plane_products import add_blocks, score_block, weigh
from nsa_serve.model.compiled.runs import choose, hide, see, see_chosen
from nsa_serve.model.compiled.scores import add_values, score_keys, softmax
from nsa_serve.model.compiled.state import SparseRule
from nsa_serve.model.compiled.tile import FEW, Scratch, Tile

_ZERO = np.float32(0.0)
_ANYTHING = 1 << 40
"""Longer than any context."""


@compiled
def score(k: Floats, tile: Tile, num_runs: int, scratch: Scratch) -> None:
    """Fill scores with softmax weights over the runs' entries of k [pages, kv_heads, X, D], up to
    the factor `shares`."""
    scores, runs, begins = scratch.scores, scratch.runs, scratch.begins
    per_page = k.shape[2]
    row = 0
    for i in range(num_runs):
        start, stop = runs[i, 0], runs[i, 1]
        keys = k[tile.pages[start // per_page], tile.head]
        score_keys(tile.queries, keys, start % per_page, stop - start, scores, row)
        if runs[i, 2]:
            hide(scores[row : row + stop - start], start, begins, scratch.ends[i])
        row += stop - start
    softmax(scores, row, tile.scale, scratch.shares)


@compiled
def score_tokens(k: Floats, tile: Tile, num_runs: int, scratch: Scratch) -> None:
    """`score` for runs of tokens, by AMX where the tile has planes: weights are tiles then."""
    if tile.block == 1:
        score(k, tile, num_runs, scratch)
        return
    scores, runs, per_page = scratch.scores, scratch.runs, k.shape[2]
    row, stop = 0, tile.positions[tile.positions.shape[0] - 1] + 1
    for i in range(num_runs):
        for first in range(runs[i, 0], runs[i, 1], FEW * tile.block):
            count = min(FEW, (runs[i, 1] - first) // tile.block)
            k_planes, index = tile.k_planes, tile.planes_at + first // tile.block
            if tile.planes_at < 0:
                k_planes, index = scratch.k_planes, 0
                keys = k[tile.pages[first // per_page], tile.head]
                for block in range(count):
                    at = first + block * tile.block
                    planes.put_keys(keys, at % per_page, stop - at, k_planes, block)
            for block in range(index, index + count):
                score_block(tile.query_planes, k_planes, block, scores, row)
                row += tile.block
        if runs[i, 2]:
            length = runs[i, 1] - runs[i, 0]
            hide(scores[row - length : row], runs[i, 0], scratch.begins, scratch.ends[i])
    weigh(scores, row, tile.scale, scratch.shares)


@compiled
def gather(v: Floats, tile: Tile, num_runs: int, which: int, scratch: Scratch) -> None:
    """out += gate · weights · the runs' entries of v [pages, kv_heads, X, Dv], for one branch."""
    runs, per_page, num_lanes = scratch.runs, v.shape[2], tile.out.shape[0]
    scratch.branch[:num_lanes] = _ZERO
    row = 0
    for i in range(num_runs):
        start, count = runs[i, 0], runs[i, 1] - runs[i, 0]
        values = v[tile.pages[start // per_page], tile.head]
        first = start % per_page
        add_values(scratch.scores, row, values, first, count, num_lanes, scratch.branch)
        row += count
    add_branch(tile, which, scratch)


@compiled
def gather_tokens(v: Floats, tile: Tile, num_runs: int, which: int, scratch: Scratch) -> None:
    """`gather` for runs of tokens, likewise."""
    if tile.block == 1:
        gather(v, tile, num_runs, which, scratch)
        return
    scores, branch, runs, per_page = scratch.scores, scratch.branch, scratch.runs, v.shape[2]
    branch[:] = _ZERO
    row, stop = 0, tile.positions[tile.positions.shape[0] - 1] + 1
    for i in range(num_runs):
        for first in range(runs[i, 0], runs[i, 1], FEW * tile.block):
            count = min(FEW, (runs[i, 1] - first) // tile.block)
            v_planes, index = tile.v_planes, tile.planes_at + first // tile.block
            if tile.planes_at < 0:
                v_planes, index = scratch.v_planes, 0
                values = v[tile.pages[first // per_page], tile.head]
                for block in range(count):
                    at = first + block * tile.block
                    planes.put_values(values, at % per_page, stop - at, v_planes, block)
            add_blocks(scores, row, v_planes, index, count, branch)
            row += count * tile.block
    add_branch(tile, which, scratch)


@compiled
def add_branch(tile: Tile, which: int, scratch: Scratch) -> None:
    """out += gate · what a branch read"""
    branch = scratch.branch
    for lane in range(tile.out.shape[0]):
        factor = tile.gates[lane, which] * scratch.shares[lane]
        for c in range(branch.shape[1]):
            tile.out[lane, c] += branch[lane, c] * factor


@compiled
def attend_to_all(
    tile: Tile, k: Floats, v: Floats, window: int, which: int, scratch: Scratch
) -> None:
    """To everything up to each token, or the last `window` of it, as branch `which`."""
    per_page = k.shape[2] if tile.planes_at < 0 else _ANYTHING
    num_runs = see(tile, 0, 1, 0, window, per_page, tile.block, scratch)
    score_tokens(k, tile, num_runs, scratch)
    gather_tokens(v, tile, num_runs, which, scratch)


@compiled
def attend_sparsely(
    rule: SparseRule, tile: Tile, k: Floats, v: Floats, k_slots: Floats, v_slots: Floats,
    scratch: Scratch,
) -> None:  # fmt: skip
    """The three branches, gated."""
    last = tile.positions[tile.positions.shape[0] - 1]
    current = last // rule.select_block
    selects = rule.use_selected and last >= rule.dense_len and current >= rule.num_selected
    if rule.use_compressed or selects:
        stride, per_page = rule.compress_stride, k_slots.shape[2]
        num_runs = see(tile, rule.first_slot, stride, rule.strict, 0, per_page, 1, scratch)
        score(k_slots, tile, num_runs, scratch)
        if rule.use_compressed:
            gather(v_slots, tile, num_runs, 0, scratch)
    if selects:
        scratch.chosen[: current + 1] = 0
        num_slots = (last + 1 - rule.strict) // rule.compress_stride
        for token in range(tile.positions.shape[0]):
            choose(rule, tile, token, num_slots, scratch)
        num_runs = see_chosen(rule, tile, scratch)
        score_tokens(k, tile, num_runs, scratch)
        gather_tokens(v, tile, num_runs, 1, scratch)
    elif rule.use_selected:
        attend_to_all(tile, k, v, 0, 1, scratch)
    if rule.use_window:
        attend_to_all(tile, k, v, rule.window, 2, scratch)


@compiled
def complete_slot(
    source: Floats, target: Floats, head: int, pages: Indices, position: int, rule: SparseRule
) -> None:
    """The mean of the tokens that end at `position`, into the slot that completes there."""
    block, stride = rule.compress_block, rule.compress_stride
    per_page, slots = source.shape[2], target.shape[2]
    slot = position // stride
    out = target[pages[slot // slots], head, slot % slots]
    out[:] = _ZERO
    for token in range(position - block + 1, position + 1):
        values = source[pages[token // per_page], head, token % per_page]
        for d in range(out.shape[0]):
            out[d] += values[d]
    for d in range(out.shape[0]):
        out[d] = out[d] / np.float32(block)
