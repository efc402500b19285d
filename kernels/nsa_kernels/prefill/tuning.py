"""Sizes of tiles. None of them decides what is computed; see `PrefillTuning` for what they move."""

from dataclasses import dataclass, replace

import torch

_SHARED_BYTES = 200 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTuning:
    """Tile sizes, warps and pipeline stages of the prefill kernels.

    Rows are (query, head of the group) pairs. Results of different sizes differ by rounding only.
    """

    flash_rows: int = 128
    flash_slots: int = 64
    flash_keys: int = 64
    flash_warps: int = 8
    flash_stages: int = 3
    score_columns: int = 256
    score_slots: int = 64
    score_warps: int = 8
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
    selected_stages: int = 3
    slab_bytes: int = 256 << 20
    """Workspace for block scores; queries beyond it wait for the next slab."""


def fitted(
    tuning: PrefillTuning | None, dtype: torch.dtype, head_dim: int, value_dim: int
) -> PrefillTuning:
    """The given sizes, or the default ones made to fit into shared memory."""
    if tuning is not None:
        return tuning
    tuning = PrefillTuning()
    wide = max(head_dim, value_dim)
    if dtype == torch.float32:
        keys = 32 if wide > 64 else 64
        tuning = replace(
            tuning,
            flash_rows=64,
            flash_slots=keys,
            flash_keys=keys,
            flash_warps=4,
            score_columns=64,
            score_slots=keys,
            score_warps=4,
            selected_rows=32,
        )
    bytes_per_key = dtype.itemsize * (head_dim + value_dim)
    stages = {
        "flash_stages": _stages(tuning.flash_rows, tuning.flash_keys, head_dim, bytes_per_key),
        "score_stages": _stages(
            tuning.score_columns, tuning.score_slots, head_dim, dtype.itemsize * head_dim
        ),
        "selected_stages": _stages(
            tuning.selected_rows, tuning.selected_keys, head_dim, bytes_per_key
        ),
    }
    return replace(tuning, **stages)


def _stages(rows: int, keys: int, head_dim: int, bytes_per_key: int) -> int:
    """As many pipeline stages as fit beside the queries, three at most."""
    queries = rows * head_dim * 4 if bytes_per_key > 4 * head_dim else rows * head_dim * 2
    return max(1, min(3, (_SHARED_BYTES - queries) // (keys * bytes_per_key)))
