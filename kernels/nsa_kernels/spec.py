"""What a kernel must know of the dialect: lengths, and how blocks are scored and chosen."""

from dataclasses import dataclass
from typing import Literal

Importance = Literal["prob_sum", "logit_mean", "max_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSpec:
    """Lengths in tokens, named as in the paper: l, d, l', n, w.

    Compressed slot s completes at token (s + 1)·d − 1 and reads the l tokens that end there.
    """

    compress_block: int
    compress_stride: int
    select_block: int
    num_selected: int
    window: int
    first_slot: int
    """Slots before it do not exist."""
    strict: bool = False
    """Whether a slot is hidden from the query at the token that completes it."""
    importance: Importance = "prob_sum"
    init_blocks: int = 1
    local_blocks: int = 2
    forced_counted: bool = True
    half_merge: bool = False
    selection_floor: float = 0.0
    dense_len: int = 0
    uses: tuple[bool, bool, bool] = (True, True, True)
    """Which of (compressed, selected, window) can contribute to the output."""

    @property
    def slots_per_block(self) -> int:
        """Slots that complete within one selection block."""
        return self.select_block // self.compress_stride

    @property
    def strides_per_slot(self) -> int:
        """Strides that one slot reads."""
        return self.compress_block // self.compress_stride

    def num_slots(self, num_tokens: int) -> int:
        """Slots that complete within the first `num_tokens` tokens, the missing first included."""
        return num_tokens // self.compress_stride

    def selects_all(self, position: int) -> bool:
        """Whether a query at `position` is sure to select every block it may see.

        Holds for every position below too, so it may be asked of the last of several.
        """
        if position < self.dense_len:
            return True
        if self.importance == "logit_mean" or self.selection_floor > 0.0:
            return False
        return position // self.select_block < self.num_selected
