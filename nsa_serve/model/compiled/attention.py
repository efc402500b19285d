"""Attention of a tile: a few neighbouring tokens of one sequence, the queries of one kv head, over
paged caches. Each of its queries is a lane."""

from typing import NamedTuple

import numpy as np

from nsa_serve.model.compiled.jit import Bytes, Floats, Indices, compiled
from nsa_serve.model.compiled.scores import KEYS, add_values, score_keys, softmax
from nsa_serve.model.compiled.state import SparseRule

_ZERO = np.float32(0.0)
_HIDDEN = np.float32(-np.inf)


class Tile(NamedTuple):
    """A tile's queries and whatever is needed to attend with them."""

    group: int
    """Queries of a token."""
    positions: Indices
    """[tokens], ascending"""
    pages: Indices
    """[W] of the sequence"""
    head: int
    queries: Floats
    """[D, lanes]: token by token, query head by query head"""
    scale: np.float32
    """Of scores."""
    gates: Floats
    """[lanes, 3]"""
    out: Floats
    """[lanes, Dv]: receives the result"""


class Scratch(NamedTuple):
    """Memory that every tile of a member uses again."""

    scores: Floats
    """[entries, lanes]"""
    shares: Floats
    """[lanes]"""
    branch: Floats
    """[lanes, Dv]"""
    runs: Indices
    """[runs, 3]: entries [start, stop), in one page, and whether a lane does not see all of them"""
    begins: Indices
    """[lanes] the first entry that a lane sees"""
    ends: Indices
    """[runs, lanes] where a run ends for a lane that sees only part of it, or none"""
    masses: Floats
    """[blocks]"""
    chosen: Bytes
    """[blocks, tokens]"""


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
def hide(scores: Floats, start: int, begins: Indices, ends: Indices) -> None:
    """Hide scores [entries, lanes] of the entries from `start` on that a lane does not see."""
    count = scores.shape[0]
    for lane in range(begins.shape[0]):
        for i in range(min(begins[lane] - start, count)):
            scores[i, lane] = _HIDDEN
        for i in range(max(ends[lane] - start, 0), count):
            scores[i, lane] = _HIDDEN


@compiled
def gather(v: Floats, tile: Tile, num_runs: int, which: int, scratch: Scratch) -> None:
    """out += gate · weights · the runs' entries of v [pages, kv_heads, X, Dv], for one branch."""
    runs, branch = scratch.runs, scratch.branch
    per_page = v.shape[2]
    num_lanes = tile.out.shape[0]
    for lane in range(num_lanes):
        for c in range(branch.shape[1]):
            branch[lane, c] = _ZERO
    row = 0
    for i in range(num_runs):
        start, count = runs[i, 0], runs[i, 1] - runs[i, 0]
        values = v[tile.pages[start // per_page], tile.head]
        add_values(scratch.scores, row, values, start % per_page, count, num_lanes, branch)
        row += count
    for lane in range(num_lanes):
        factor = tile.gates[lane, which] * scratch.shares[lane]
        for c in range(branch.shape[1]):
            tile.out[lane, c] += branch[lane, c] * factor


@compiled
def see(
    tile: Tile, first: int, stride: int, strict: int, window: int, per_page: int, scratch: Scratch
) -> int:
    """Runs of all entries from `first` on that any query sees, a page each; returns how many.

    A token at position p sees entries up to (p + 1 − strict) / stride, the last `window` of them
    if it is not 0."""
    runs, begins, ends = scratch.runs, scratch.begins, scratch.ends
    last = tile.positions.shape[0] - 1
    fewest = (tile.positions[0] + 1 - strict) // stride
    most = (tile.positions[last] + 1 - strict) // stride
    start = max(first, fewest - window) if window else first
    all_begun = max(first, most - window) if window else first
    num_runs = 0
    while start < most:
        stop = min((start // per_page + 1) * per_page, most)
        runs[num_runs, 0], runs[num_runs, 1] = start, stop
        runs[num_runs, 2] = start < all_begun or stop > fewest
        start = stop
        num_runs += 1
    for lane in range(begins.shape[0]):
        seen = (tile.positions[min(lane // tile.group, last)] + 1 - strict) // stride
        begins[lane] = max(first, seen - window) if window else first
        for i in range(num_runs):
            if runs[i, 2]:
                ends[i, lane] = seen
    return num_runs


@compiled
def choose(rule: SparseRule, tile: Tile, token: int, num_slots: int, scratch: Scratch) -> None:
    """Mark the blocks that a token reads; scores [num_slots − first slot, lanes] are those of the
    slots that any token of the tile sees, so that those it does not see weigh nothing."""
    masses, chosen, scores = scratch.masses, scratch.chosen, scratch.scores
    position = tile.positions[token]
    current = position // rule.select_block
    left = rule.num_selected
    if position < rule.dense_len or current < left:
        chosen[: current + 1, token] = 1
        return
    per_block = rule.select_block // rule.compress_stride
    overlap = rule.compress_block // rule.compress_stride - 1
    masses[: current + 1] = _ZERO
    for slot in range(rule.first_slot, num_slots):
        mass = _ZERO
        for lane in range(token * tile.group, (token + 1) * tile.group):
            mass += scores[slot - rule.first_slot, lane] * scratch.shares[lane]
        for back in range(min(overlap, slot) + 1):
            block = (slot - back) // per_block
            if block <= current:
                masses[block] += mass
    for block in range(current + 1):
        if block < rule.init_blocks or block > current - rule.local_blocks:
            chosen[block, token] = 1
            left -= 1
    while left > 0:
        best = -1
        for block in range(current + 1):
            if chosen[block, token] == 0 and (best < 0 or masses[block] > masses[best]):
                best = block
        if best < 0:
            break
        chosen[best, token] = 1
        left -= 1


@compiled
def see_chosen(rule: SparseRule, tile: Tile, scratch: Scratch) -> int:
    """Runs of the blocks that any token of the tile chose, ascending; returns how many."""
    runs, ends, chosen = scratch.runs, scratch.ends, scratch.chosen
    last = tile.positions.shape[0] - 1
    num_runs = 0
    scratch.begins[:] = 0
    for block in range(tile.positions[last] // rule.select_block + 1):
        wanted = False
        for token in range(last + 1):
            wanted = wanted or chosen[block, token] != 0
        if not wanted:
            continue
        start = block * rule.select_block
        stop = min(start + rule.select_block, tile.positions[last] + 1)
        runs[num_runs, 0], runs[num_runs, 1], runs[num_runs, 2] = start, stop, 0
        for lane in range(ends.shape[1]):
            token = min(lane // tile.group, last)
            end = tile.positions[token] + 1 if chosen[block, token] else 0
            ends[num_runs, lane] = end
            if end < stop:
                runs[num_runs, 2] = 1
        num_runs += 1
    return num_runs


@compiled
def attend_densely(tile: Tile, k: Floats, v: Floats, scratch: Scratch) -> None:
    """To everything up to each token."""
    num_runs = see(tile, 0, 1, 0, 0, k.shape[2], scratch)
    score(k, tile, num_runs, scratch)
    gather(v, tile, num_runs, 1, scratch)


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
        num_runs = see(
            tile, rule.first_slot, rule.compress_stride, rule.strict, 0, k_slots.shape[2], scratch
        )
        score(k_slots, tile, num_runs, scratch)
        if rule.use_compressed:
            gather(v_slots, tile, num_runs, 0, scratch)
    if selects:
        scratch.chosen[: current + 1] = 0
        num_slots = (last + 1 - rule.strict) // rule.compress_stride
        for token in range(tile.positions.shape[0]):
            choose(rule, tile, token, num_slots, scratch)
        num_runs = see_chosen(rule, tile, scratch)
        score(k, tile, num_runs, scratch)
        gather(v, tile, num_runs, 1, scratch)
    elif rule.use_selected:
        attend_densely(tile, k, v, scratch)
    if rule.use_window:
        num_runs = see(tile, 0, 1, 0, rule.window, k.shape[2], scratch)
        score(k, tile, num_runs, scratch)
        gather(v, tile, num_runs, 2, scratch)


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


@compiled
def make_scratch(num_lanes: int, value_dim: int, entries: int, piece: int) -> Scratch:
    """For contexts of so many entries; `piece` is the smallest length of a run."""
    pieces = entries // piece + 2
    return Scratch(
        scores=np.empty((entries + KEYS, num_lanes), np.float32),
        shares=np.empty(num_lanes, np.float32),
        branch=np.empty((num_lanes, value_dim), np.float32),
        runs=np.empty((pieces, 3), np.int64),
        begins=np.empty(num_lanes, np.int64),
        ends=np.empty((pieces, num_lanes), np.int64),
        masses=np.empty(pieces, np.float32),
        chosen=np.empty((pieces, num_lanes), np.int8),
    )
