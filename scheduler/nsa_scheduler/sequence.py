"""A sequence: the tokens of one continuation, how many of them the cache holds, and where."""

from dataclasses import dataclass, field
from enum import Enum, auto


class SequenceState(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    """Queued, no pages: new, or preempted."""
    RUNNING = auto()
    """Holds pages and takes part in steps."""
    FINISHED = auto()
    """Holds nothing and will not run again."""


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """Mutable state of one sequence; the scheduler alone changes it.

    There is no phase: a sequence whose cache holds fewer tokens than it has must catch up, by its
    whole prompt or by the one token sampled last, and samples when it has caught up.
    """

    sequence_id: int
    token_ids: list[int]
    """Prompt, then output."""
    num_prompt_tokens: int
    max_output_tokens: int
    priority: int = 0
    """Lower runs first under the priority policy."""
    salt: bytes = b""
    """Pages are shared only between sequences of one salt."""
    may_read_prefix_cache: bool = True
    """False where every prompt token must be computed (prompt_logprobs)."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end it, end-of-text included unless ignored."""
    min_output_tokens: int = 0
    """Stop tokens do not end it before this many output tokens."""

    state: SequenceState = SequenceState.WAITING
    num_computed: int = 0
    """Tokens whose keys, values and compressed slots the cache holds."""
    pages: list[int] = field(default_factory=list)
    """Page i holds tokens i·page_size and on."""
    page_hashes: list[bytes] = field(default_factory=list)
    """Chained hash of each full page so far; kept over preemption."""
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache gave at first admission."""
    num_preemptions: int = 0
    arrival: int = 0
    """Order of arrival, kept over preemption."""
    admitted_step: int = -1
    """Step of the first admission, −1 before."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_behind(self) -> int:
        """Tokens still to be computed before the next can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens sampled so far."""
        return self.token_ids[self.num_prompt_tokens :]
