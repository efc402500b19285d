"""What a tile's queries see: runs of entries that lie side by side in a cache."""

import numpy as np

from nsa_serve.model.compiled.jit import Floats, Indices, compiled
from nsa_serve.model.compiled.state import SparseRule
from nsa_serve.model.compiled.tile import Scratch, Tile

_ZERO = np.float32(0.0)
_HIDDEN = np.float32(-np.inf)


@compiled
def see(
    tile: Tile, first: int, stride: int, strict: int, window: int, per_page: int, block: int,
    scratch: Scratch,
) -> int:  # fmt: skip
    """Runs of all entries from `first` on that any query sees, a page each; returns how many.

    A token at position p sees entries up to (p + 1 − strict) / stride, the last `window` of them
    if it is not 0. Runs begin and end at multiples of `block`."""
    runs, begins, ends = scratch.runs, scratch.begins, scratch.ends
    last = tile.positions.shape[0] - 1
    fewest = (tile.positions[0] + 1 - strict) // stride
    most = (tile.positions[last] + 1 - strict) // stride
    start = max(first, fewest - window) if window else first
    start -= start % block
    end = -(-most // block) * block
    all_begun = max(first, most - window) if window else first
    num_runs = 0
    while start < end:
        stop = min((start // per_page + 1) * per_page, end)
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
def hide(scores: Floats, start: int, begins: Indices, ends: Indices) -> None:
    """Hide scores [entries, lanes] of the entries from `start` on that a lane does not see."""
    count = scores.shape[0]
    for lane in range(begins.shape[0]):
        for i in range(min(begins[lane] - start, count)):
            scores[i, lane] = _HIDDEN
        for i in range(max(ends[lane] - start, 0), count):
            scores[i, lane] = _HIDDEN


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
        end = -(-(tile.positions[last] + 1) // tile.block) * tile.block
        stop = min(start + rule.select_block, end)
        runs[num_runs, 0], runs[num_runs, 1], runs[num_runs, 2] = start, stop, 0
        for lane in range(ends.shape[1]):
            token = min(lane // tile.group, last)
            end = tile.positions[token] + 1 if chosen[block, token] else 0
            ends[num_runs, lane] = end
            if end < stop:
                runs[num_runs, 2] = 1
        num_runs += 1
    return num_runs
