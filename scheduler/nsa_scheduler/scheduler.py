"""The scheduler: one loop without phases over sequences that each have tokens to catch up."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from nsa_scheduler.admission import Admission
from nsa_scheduler.config import SchedulerConfig
from nsa_scheduler.ending import end_reason
from nsa_scheduler.errors import NeverFits, QueueFull
from nsa_scheduler.output import EndReason, ScheduledBatch, ScheduledSequence, StepUpdate
from nsa_scheduler.pages import PagePool
from nsa_scheduler.planning import StepPlanner
from nsa_scheduler.policy import WaitingQueue, rank_of
from nsa_scheduler.prefix import PrefixIndex
from nsa_scheduler.sequence import Sequence, SequenceState
from nsa_scheduler.sharing import PrefillSharing
from nsa_scheduler.stats import SchedulerStats


class Scheduler:
    """Owns sequences and pages. The cycle is `schedule`, run the batch, then `update` or `cancel`.

    Whenever there is work, `schedule` returns a batch that is not empty: what runs always gets
    tokens, and where nothing runs the head of the queue fits.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.stats = SchedulerStats()
        self._pool = PagePool(config.num_pages)
        self._prefix = PrefixIndex(
            self._pool, config.page_size, config.cache_key, enabled=config.enable_prefix_caching
        )
        self._sharing = PrefillSharing(config.page_size)
        self._rank = rank_of(config.policy)
        self._admission = Admission(config, self._pool, self._rank)
        self._planner = StepPlanner(self._rank, self._sharing, config.max_num_batched_tokens)
        self._waiting = WaitingQueue(self._rank)
        self._running: dict[int, Sequence] = {}
        self._sequences: dict[int, Sequence] = {}
        self._in_flight: ScheduledBatch | None = None
        self._max_sequence_len = config.max_sequence_len
        self._num_arrived = 0
        self._step = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self._sequences)

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences queued, or waiting for another to compute the pages that both need."""
        return len(self._waiting) + len(self._sharing)

    @property
    def usage(self) -> float:
        """Referenced pages over all pages, 0 to 1."""
        return self._pool.num_referenced / self.config.num_pages

    def find(self, sequence_id: int) -> Sequence | None:
        """The sequence, unless it is unknown or has ended."""
        return self._sequences.get(sequence_id)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises `NeverFits` or `QueueFull`, and then forgets it."""
        assert seq.sequence_id not in self._sequences, f"sequence {seq.sequence_id} exists"
        assert seq.num_tokens == seq.num_prompt_tokens >= 1, "a new sequence is its prompt"
        if seq.num_tokens + 1 > self._max_sequence_len:
            raise NeverFits(
                f"a prompt of {seq.num_tokens} tokens and one more exceed the limit of "
                f"{self._max_sequence_len}"
            )
        if self.num_waiting >= self.config.max_num_queued:
            raise QueueFull(f"{self.num_waiting} sequences are waiting already")
        seq.arrival = self._num_arrived
        self._num_arrived += 1
        self._sequences[seq.sequence_id] = seq
        self._waiting.push(seq)

    def abort(self, sequence_ids: Iterable[int]) -> list[Sequence]:
        """End sequences in whatever state; return those that had not ended, each once.

        Pages of a sequence in the step in flight are freed by `update`, the others now.
        """
        batch = self._in_flight
        in_flight = {item.sequence for item in batch.items} if batch else set()
        aborted = [s for i in sequence_ids if (s := self._sequences.pop(i, None)) is not None]
        for seq in aborted:
            if seq.state is SequenceState.RUNNING:
                self._stop(seq, free=seq not in in_flight)
            elif not self._sharing.leave(seq):
                self._waiting.remove(seq)
            seq.state = SequenceState.FINISHED
        return aborted

    def schedule(self) -> ScheduledBatch:
        """Plan one step: decoding sequences first, then chunks of those that catch up."""
        assert self._in_flight is None, "the last step was neither updated nor cancelled"
        self._step += 1
        preempted = self._grow()
        self._admit(preempted)
        items = self._planner.plan(self._running.values(), self.config.max_num_batched_tokens)
        batch = ScheduledBatch(items, preempted)
        if batch:
            self._in_flight = batch
        return batch

    def update(
        self, batch: ScheduledBatch, token_ids: Mapping[int, int], failed: Collection[int] = ()
    ) -> list[StepUpdate]:
        """Take in a step that ran; one update for each of its sequences that was not aborted.

        `token_ids` holds a token for each sequence that caught up; those in `failed` end with
        ERROR, and no page that they hold can be hit any more.
        """
        self._land(batch)
        updates: list[StepUpdate] = []
        for item in batch.items:
            seq = item.sequence
            if seq.sequence_id in failed:
                self._prefix.forget(seq)
            if seq.state is SequenceState.FINISHED:
                self._free(seq)
            elif seq.sequence_id in failed:
                self._end(seq)
                updates.append(StepUpdate(seq, [], EndReason.ERROR))
            else:
                updates.append(self._advance(item, token_ids))
        return updates

    def cancel(self, batch: ScheduledBatch) -> None:
        """Drop a step that raised: its sequences are as before and can be scheduled again."""
        self._land(batch)
        for item in batch.items:
            if item.sequence.state is SequenceState.FINISHED:
                self._free(item.sequence)

    def preempt(self, sequence_id: int) -> None:
        """Take the pages of a running sequence and queue it again; not while a step is in flight.

        Its registered pages stay cached, so that resuming costs little while they last.
        """
        assert self._in_flight is None, "a step is in flight"
        self._preempt(self._running[sequence_id])

    def check_integrity(self) -> None:
        """Raise `AssertionError` if pages, references, queues or states contradict each other."""
        landing = self._in_flight.items if self._in_flight else []
        aborted = [i.sequence for i in landing if i.sequence.state is SequenceState.FINISHED]
        held = Counter(p for s in (*self._running.values(), *aborted) for p in s.pages)
        self._pool.check_integrity(held)
        self._sharing.check_integrity(self._running.values())
        for seq in self._running.values():
            assert seq.state is SequenceState.RUNNING, f"{seq.sequence_id} runs in {seq.state}"
            covered = len(seq.pages) * self.config.page_size
            assert seq.num_computed <= covered, f"{seq.sequence_id} lacks pages"
            assert len(set(seq.pages)) == len(seq.pages), f"{seq.sequence_id} has a page twice"
            assert seq.num_behind >= 1, f"{seq.sequence_id} has nothing to compute"
        for seq in self._waiting:
            assert seq.state is SequenceState.WAITING, f"{seq.sequence_id} waits in {seq.state}"
            assert not seq.pages, f"{seq.sequence_id} waits and holds pages"
        known = self.num_running + self.num_waiting
        assert known == len(self._sequences), "a sequence is lost"

    def _grow(self) -> list[Sequence]:
        """Give a page to each sequence whose next token needs one; return who was preempted.

        Where none is left the last in rank gives way, be it the one that needs the page; so nobody
        loses pages to one that came after it.
        """
        preempted: list[Sequence] = []
        size, running = self.config.page_size, self._running
        short = [s for s in running.values() if len(s.token_ids) > len(s.pages) * size]
        for seq in short:
            while seq.state is SequenceState.RUNNING and self._pool.num_available == 0:
                victim = max(running.values(), key=self._rank)
                self._preempt(victim)
                preempted.append(victim)
            if seq.state is SequenceState.RUNNING:
                seq.pages.append(self._pool.allocate())
        if self.config.num_lookahead_tokens:
            self._look_ahead()
        return preempted

    def _look_ahead(self) -> None:
        """Give a page early, while any is left, to each sequence that needs one a token later."""
        size = self.config.page_size
        for seq in self._running.values():
            if len(seq.token_ids) == len(seq.pages) * size and self._pool.num_available:
                seq.pages.append(self._pool.allocate())

    def _admit(self, preempted: list[Sequence]) -> None:
        """Start sequences from the head of the queue.

        Those who give way to them join `preempted`, of whom none comes back in the same step.
        """
        by_priority = self.config.policy == "priority"
        while self._waiting and (by_priority or self.num_running < self.config.max_running):
            seq = self._waiting.head()
            if seq in preempted:
                break
            hits = self._prefix.match(seq)
            if self._sharing.join(seq, self._prefix.readable(seq), len(hits), self._step):
                self._waiting.remove(seq)
                continue
            victims = self._admission.victims(seq, hits, self._running.values())
            if victims is None:
                break
            self._waiting.remove(seq)
            for page in hits:
                self._pool.share(page)
            for victim in victims:
                self._preempt(victim)
            self._start(seq, hits)
            preempted += victims

    def _start(self, seq: Sequence, hits: list[int]) -> None:
        """Let a sequence run on the pages that it hit and new ones for the rest of its tokens."""
        num_new = self.config.pages_for(seq.num_tokens) - len(hits)
        seq.pages = hits + [self._pool.allocate() for _ in range(num_new)]
        seq.num_computed = len(hits) * self.config.page_size
        seq.state = SequenceState.RUNNING
        self._running[seq.sequence_id] = seq
        self._sharing.begin(seq, self._prefix.hashes(seq)[len(hits) :])
        if seq.admitted_step < 0:
            seq.admitted_step = self._step
            seq.num_cached_tokens = seq.num_computed
            if self.config.enable_prefix_caching and seq.may_read_prefix_cache:
                self.stats.prefix_cache_queries += seq.num_prompt_tokens
                self.stats.prefix_cache_hits += seq.num_cached_tokens

    def _land(self, batch: ScheduledBatch) -> None:
        assert batch is self._in_flight or not batch, "not the batch in flight"
        self._in_flight = None

    def _advance(self, item: ScheduledSequence, token_ids: Mapping[int, int]) -> StepUpdate:
        seq, num_computed = item.sequence, item.start + item.num_tokens
        self._commit(seq, num_computed)
        if num_computed < len(seq.token_ids):
            return StepUpdate(seq, [])
        token_id = token_ids[seq.sequence_id]
        seq.token_ids.append(token_id)
        end = end_reason(seq, self._max_sequence_len)
        if end is None:
            return StepUpdate(seq, [token_id])
        self._end(seq)
        return StepUpdate(seq, [token_id], end, token_id if end is EndReason.STOP else None)

    def _commit(self, seq: Sequence, num_computed: int) -> None:
        """The cache now holds the first `num_computed` tokens: register the pages they filled."""
        size = self.config.page_size
        first, last = seq.num_computed // size, num_computed // size
        seq.num_computed = num_computed
        if last > first:
            self._prefix.register(seq, first, last)
            self._requeue(self._sharing.computed(seq, seq.page_hashes[first:last]))

    def _preempt(self, seq: Sequence) -> None:
        self._stop(seq, free=True)
        seq.num_computed = 0
        seq.num_preemptions += 1
        seq.state = SequenceState.WAITING
        self._waiting.push(seq)
        self.stats.num_preemptions += 1

    def _end(self, seq: Sequence) -> None:
        del self._sequences[seq.sequence_id]
        self._stop(seq, free=True)
        seq.state = SequenceState.FINISHED

    def _stop(self, seq: Sequence, *, free: bool) -> None:
        """Take a sequence out of the running ones; those that waited for it go on."""
        del self._running[seq.sequence_id]
        uncomputed = seq.page_hashes[seq.num_computed // self.config.page_size :]
        self._requeue(self._sharing.stop(seq, uncomputed))
        if free:
            self._free(seq)

    def _free(self, seq: Sequence) -> None:
        self._pool.release(seq.pages)
        seq.pages = []

    def _requeue(self, sequences: Iterable[Sequence]) -> None:
        for seq in sequences:
            self._waiting.push(seq)
