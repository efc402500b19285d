"""The limits that the scheduler works within."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

PolicyName = Literal["fcfs", "priority"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Frozen limits; raises `ValueError`, naming the field, if one makes no sense."""

    num_pages: int
    page_size: int
    """Tokens of one page."""
    max_model_len: int
    """Tokens of prompt and output together."""
    max_num_seqs: int = 64
    """Sequences that hold pages at the same time."""
    max_num_batched_tokens: int = 512
    """Tokens that one step computes at most."""
    max_num_queued: int = 512
    """Sequences that wait at the same time."""
    policy: PolicyName = "fcfs"
    enable_prefix_caching: bool = True
    cache_key: bytes = b""
    """Goes into every page hash: models whose pages differ never share any."""
    num_lookahead_tokens: int = 0
    """Tokens beyond its own that a running sequence's pages should hold, where pages are free: 1
    lets the engine compute a token before the scheduler has seen the one before it."""
    watermark: float = 0.01
    """Part of the pages that an admission leaves free for sequences that already run."""

    def __post_init__(self) -> None:
        for name in (
            "num_pages",
            "page_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_queued",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.num_lookahead_tokens not in (0, 1):
            raise ValueError("num_lookahead_tokens must be 0 or 1")
        if self.max_model_len < 2:
            raise ValueError("max_model_len must be at least 2: one token in, one out")
        if not 0.0 <= self.watermark < 1.0:
            raise ValueError("watermark must be in [0, 1)")

    @property
    def max_sequence_len(self) -> int:
        """Tokens at which a sequence must end: the model's limit, or the whole cache."""
        return min(self.max_model_len, self.num_pages * self.page_size)

    @property
    def max_running(self) -> int:
        """Sequences that run at once: each must get a token in every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def watermark_pages(self) -> int:
        """`watermark` in pages, rounded up."""
        return ceil(self.watermark * self.num_pages)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)
