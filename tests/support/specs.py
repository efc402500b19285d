"""A dialect's lengths and rules for tests of single stages."""

from typing import Any

from nsa_kernels.spec import SparseSpec


def paper_spec(**changes: Any) -> SparseSpec:
    """The paper's l / d / l' / n / w = 32 / 16 / 64 / 16 / 512, or what is changed of it."""
    fields: dict[str, Any] = {
        "compress_block": 32,
        "compress_stride": 16,
        "select_block": 64,
        "num_selected": 16,
        "window": 512,
        "first_slot": 1,
    }
    return SparseSpec(**fields | changes)
