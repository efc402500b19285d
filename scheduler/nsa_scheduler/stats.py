"""What the scheduler counts."""

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerStats:
    """Counters since start."""

    prefix_cache_queries: int = 0
    """Prompt tokens looked up."""
    prefix_cache_hits: int = 0
    """Prompt tokens found."""
    num_preemptions: int = 0
