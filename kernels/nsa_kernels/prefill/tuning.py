"""Sizes of tiles. None of them decides what is computed; see `PrefillTuning` for what they move."""

from dataclasses import dataclass, replace

import torch

from nsa_kernels.prefill.tiles import next_power_of_2, split_dim

_SHARED_BYTES = 216 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTuning:
    """Tile sizes, warps and pipeline stages of the prefill kernels.

    Rows are (query, head of the group) pairs. Results of different sizes differ by rounding only.
    """

    flash_rows: int = 128
    flash_slots: int = 128
    flash_keys: int = 64
    flash_warps: int = 8
    flash_stages: int = 2
    flash_registers: int | None = None
    """Registers per thread at most; 128 let two programs of 8 warps share a multiprocessor."""
    score_columns: int = 256
    score_slots: int = 64
    score_warps: int = 4
    score_stages: int = 2
    score_splits: int = 0
    """Parts of the slots' range that run side by side; 0 chooses. It moves no result."""
    select_queries: int = 1
    """Queries whose top n are sought at the same time."""
    select_elements: int = 32
    """Scores per thread in the top n."""
    selected_rows: int = 64
    selected_keys: int = 64
    selected_warps: int = 4
    selected_stages: int = 3
    slab_bytes: int = 256 << 20
    """Workspace for block scores; queries beyond it wait for the next slab."""


def fitted(
    tuning: PrefillTuning | None, dtype: torch.dtype, head_dim: int, value_dim: int
) -> PrefillTuning:
    """The given sizes, or the default ones made to fit into registers and shared memory."""
    if tuning is not None:
        return tuning
    tuning = PrefillTuning()
    d, dv = sum(split_dim(head_dim)), next_power_of_2(value_dim)
    if dtype == torch.float32:  # each product is three, and operands are twice as large
        tuning = replace(
            tuning,
            flash_rows=64,
            flash_slots=32,
            flash_keys=32,
            flash_warps=4,
            score_columns=64,
            score_slots=32,
            selected_rows=32,
            selected_keys=32,
        )
    elif max(d, dv) > 128:
        rows = 128 if dv <= 128 else 64
        tuning = replace(tuning, flash_rows=rows, flash_slots=64, score_columns=128)
    both = max(tuning.flash_slots, tuning.flash_keys) * (d + dv)
    return replace(
        tuning,
        flash_stages=_stages(tuning.flash_stages, tuning.flash_rows * d, both, dtype),
        score_stages=_stages(
            tuning.score_stages, tuning.score_columns * d, tuning.score_slots * d, dtype
        ),
        selected_stages=_stages(
            tuning.selected_stages, tuning.selected_rows * d, tuning.selected_keys * (d + dv), dtype
        ),
    )


def _stages(wanted: int, resident: int, per_stage: int, dtype: torch.dtype) -> int:
    """Stages, as many as wanted, of so many elements each that fit beside the resident ones."""
    fit = (_SHARED_BYTES // dtype.itemsize - resident) // per_stage
    return max(1, min(wanted, fit))
