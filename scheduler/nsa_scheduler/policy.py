"""Who comes first: in the queue, and when pages run out."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from nsa_scheduler.config import PolicyName
from nsa_scheduler.sequence import Sequence

Rank = tuple[int, int]
"""(class, arrival): the lowest is admitted first, the highest is preempted first."""

RankOf = Callable[[Sequence], Rank]


def rank_of(policy: PolicyName) -> RankOf:
    """The order of a policy; under fcfs all sequences are of one class."""
    return _by_priority if policy == "priority" else _by_arrival


def _by_arrival(sequence: Sequence) -> Rank:
    return 0, sequence.arrival


def _by_priority(sequence: Sequence) -> Rank:
    return sequence.priority, sequence.arrival


class WaitingQueue:
    """Sequences in the order of their rank.

    A sorted list: moving a few thousand pointers costs less than one Python call, and unlike a
    heap it keeps no aborted entry.
    """

    def __init__(self, rank: RankOf) -> None:
        self._rank = rank
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def push(self, sequence: Sequence) -> None:
        """Insert by rank."""
        insort(self._sequences, sequence, key=self._rank)

    def head(self) -> Sequence:
        """The first; the queue must not be empty."""
        return self._sequences[0]

    def remove(self, sequence: Sequence) -> None:
        """Take a queued sequence out."""
        index = bisect_left(self._sequences, self._rank(sequence), key=self._rank)
        assert self._sequences[index] is sequence, "the sequence is not queued"
        del self._sequences[index]
