"""Sizes of tiles. None of them decides what is computed; see `PrefillTuning` for what they move."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from nsa_kernels.prefill.tiles import next_power_of_2, split_dim

SHARED_BYTES = 227 * 1024
"""What a program may have of a multiprocessor's shared memory (compute capability 9.0)."""

_SCRATCH_BYTES = 8 * 1024
"""For exchanges between threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTuning:
    """Tile sizes, warps and pipeline stages of the prefill kernels.

    Rows are (query, head of the group) pairs. Results of different sizes differ by rounding only.
    """

    selected_fixed_top: bool = True
    """Not to follow the maximum of logits from tile to tile, where that of one tile will do; where
    it does not, rows are computed again. Never for float16, which has too few exponents."""
    flash_rows: int = 128
    flash_slots: int = 64
    flash_keys: int = 64
    flash_warps: int = 8
    flash_stages: int = 2
    flash_registers: int | None = 128
    """Registers per thread at most; 128 let two programs of 8 warps share a multiprocessor."""
    score_columns: int = 256
    score_slots: int = 64
    score_warps: int = 4
    score_stages: int = 3
    score_splits: int = 0
    """Parts of the slots' range that run side by side; 0 chooses. It moves no result."""
    select_queries: int = 1
    """Queries whose top n are sought at the same time."""
    select_elements: int = 32
    """Scores per thread in the top n."""
    selected_rows: int = 64
    selected_keys: int = 64
    selected_warps: int = 4
    selected_stages: int = 2
    selected_registers: int | None = None
    slab_bytes: int = 256 << 20
    """Workspace for block scores; queries beyond it wait for the next slab."""


class Tile(NamedTuple):
    """Rows by keys, and how many of the latter are loaded at the same time."""

    rows: int
    keys: int
    stages: int


def shared_bytes(tile: Tile, dtype: torch.dtype, head_dim: int, value_dim: int) -> int:
    """Shared memory for a tile's queries, and keys and values (0: none) of each stage, at most.

    Products of float32 are made of three, and want their left operands twice.
    """
    d = sum(split_dim(head_dim))
    dv = max(16, next_power_of_2(value_dim)) if value_dim else 0
    rows, keys, stages = tile
    need = dtype.itemsize * (rows * d + stages * keys * (d + dv)) + _SCRATCH_BYTES
    if dtype == torch.float32:
        need += dtype.itemsize * rows * (d + 2 * keys)
    return need


def fit_tile(wanted: Tile, least: Tile, dtype: torch.dtype, head_dim: int, value_dim: int) -> Tile:
    """The wanted tile with fewer stages, then rows, then keys, until it fits or is the least."""
    tile = wanted
    while shared_bytes(tile, dtype, head_dim, value_dim) > SHARED_BYTES:
        rows, keys, stages = tile
        if stages > least.stages:
            tile = Tile(rows, keys, stages - 1)
        elif rows > least.rows:
            tile = Tile(rows // 2, keys, wanted.stages)
        elif keys > least.keys:
            tile = Tile(rows, keys // 2, wanted.stages)
        else:
            break
    return tile


def fitted(
    tuning: PrefillTuning | None,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    group: int = 1,
) -> PrefillTuning:
    """The given sizes, or the default ones made to fit into registers and shared memory."""
    if tuning is not None:
        return tuning
    tuning = PrefillTuning()
    dv = next_power_of_2(value_dim)
    if dtype == torch.float32:  # each product is three, and operands are twice as large
        tuning = replace(
            tuning,
            selected_fixed_top=False,
            flash_rows=64,
            flash_slots=32,
            flash_keys=32,
            flash_warps=4,
            flash_registers=None,
            score_columns=64,
            score_slots=32,
            selected_rows=32,
            selected_keys=32,
        )
    elif max(sum(split_dim(head_dim)), dv) > 128:
        tuning = replace(tuning, score_columns=128)
        if dv > 128:
            tuning = replace(tuning, flash_rows=64, flash_registers=None)
    least = Tile(max(16, next_power_of_2(group)), 16, 1)
    flash = fit_tile(
        Tile(tuning.flash_rows, max(tuning.flash_slots, tuning.flash_keys), tuning.flash_stages),
        least,
        dtype,
        head_dim,
        value_dim,
    )
    scores = fit_tile(
        Tile(tuning.score_columns, tuning.score_slots, tuning.score_stages),
        least,
        dtype,
        head_dim,
        0,
    )
    selected = fit_tile(
        Tile(tuning.selected_rows, tuning.selected_keys, tuning.selected_stages),
        least,
        dtype,
        head_dim,
        value_dim,
    )
    return replace(
        tuning,
        flash_rows=flash.rows,
        flash_slots=min(tuning.flash_slots, flash.keys),
        flash_keys=min(tuning.flash_keys, flash.keys),
        flash_stages=flash.stages,
        score_columns=scores.rows,
        score_slots=scores.keys,
        score_stages=scores.stages,
        selected_rows=selected.rows,
        selected_keys=selected.keys,
        selected_stages=selected.stages,
    )
