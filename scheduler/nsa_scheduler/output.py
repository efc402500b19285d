"""What a step computes: the plan that the scheduler hands to the engine, and what comes back."""

from dataclasses import dataclass, field
from enum import Enum

from nsa_scheduler.sequence import Sequence


@dataclass(slots=True, frozen=True)
class ScheduledSequence:
    """Compute tokens [start, start + num_tokens) of a sequence; its pages already cover them."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """Tokens in the cache after the step."""
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the step catches up, so that a token is sampled from the last position."""
        return self.start + self.num_tokens == self.sequence.num_tokens


@dataclass(slots=True, frozen=True)
class ScheduledBatch:
    """One step: decoding sequences (one token each) first, then chunks of longer catching-up."""

    items: list[ScheduledSequence]
    preempted: list[Sequence] = field(default_factory=list)
    """Sequences that lost their pages to make room for this step."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(item.num_tokens for item in self.items)

    def __bool__(self) -> bool:
        return bool(self.items)


class EndReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True, frozen=True)
class StepUpdate:
    """What one step did to one sequence."""

    sequence: Sequence
    new_token_ids: list[int]
    """The sampled token, or none where the step did not catch up."""
    end: EndReason | None = None
    stop_token_id: int | None = None
    """The token that ended it, where `end` is STOP."""
