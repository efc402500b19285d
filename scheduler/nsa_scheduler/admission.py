"""Whether the head of the queue can get its pages, and who must give way to it."""

from collections import Counter
from collections.abc import Collection

from nsa_scheduler.config import SchedulerConfig
from nsa_scheduler.pages import PagePool
from nsa_scheduler.policy import RankOf
from nsa_scheduler.sequence import Sequence

MAX_PREEMPTIONS = 8
"""From this many on, a sequence is admitted only where nothing that runs can push it out."""


class Admission:
    """Decides on the head of the queue alone.

    Nobody jumps a head that does not fit yet: what runs ends within a bounded number of steps and
    nothing is admitted meanwhile, so a large sequence waits no longer than that.
    """

    def __init__(self, config: SchedulerConfig, pool: PagePool, rank: RankOf) -> None:
        self._config = config
        self._pool = pool
        self._rank = rank

    def victims(
        self, sequence: Sequence, hits: list[int], running: Collection[Sequence]
    ) -> list[Sequence] | None:
        """Whom to preempt so that the sequence can run: nobody, if there is room; None: it waits.

        `hits` are the pages that it finds in the prefix index. Only sequences of a lower class
        give way, the last in rank first, and only if that makes enough room.
        """
        needed = self._config.pages_for(sequence.num_tokens) - len(hits)
        available = self._pool.num_available - sum(self._pool.references(p) == 0 for p in hits)
        if self._fits(sequence, needed, available, running):
            return []
        klass = self._rank(sequence)[0]
        remaining = sorted(running, key=self._rank)
        victims: list[Sequence] = []
        released: Counter[int] = Counter()
        while remaining and self._rank(remaining[-1])[0] > klass:
            victims.append(remaining.pop())
            released.update(victims[-1].pages)
            freed = self._num_freed(released, hits)
            if self._fits(sequence, needed, available + freed, remaining):
                return victims
        return None

    def _num_freed(self, released: Counter[int], hits: list[int]) -> int:
        kept = set(hits)
        return sum(
            self._pool.references(page) == count
            for page, count in released.items()
            if page not in kept
        )

    def _fits(
        self, sequence: Sequence, needed: int, available: int, running: Collection[Sequence]
    ) -> bool:
        if not running:
            return needed <= available
        return (
            len(running) < self._config.max_running
            and needed + self._headroom(sequence, running) <= available
        )

    def _headroom(self, sequence: Sequence, running: Collection[Sequence]) -> int:
        """Pages left free for growth: the watermark, and more for one that was preempted.

        After its k-th preemption every running sequence must be able to grow by 2^(k − 1) pages,
        and after the last allowed one by all that it can ever need, which ends the thrashing.
        """
        k = sequence.num_preemptions
        if k == 0:
            return self._config.watermark_pages
        allowance = 2 ** (k - 1) if k < MAX_PREEMPTIONS else self._config.num_pages
        growth = sum(min(allowance, self._growth(s)) for s in (*running, sequence))
        return self._config.watermark_pages + growth

    def _growth(self, sequence: Sequence) -> int:
        """Pages that the sequence can still come to need beyond those for its present tokens."""
        most = sequence.num_prompt_tokens + sequence.max_output_tokens
        pages_for = self._config.pages_for
        return pages_for(min(most, self._config.max_sequence_len)) - pages_for(sequence.num_tokens)
