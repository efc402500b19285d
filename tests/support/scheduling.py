"""A scheduler with a stand-in for the model: the next token is a function of the tokens so far.

The stand-in reads those tokens back through the page tables, so a page that was shared, reused or
left unwritten by mistake changes the output.
"""

from array import array
from collections.abc import Callable, Collection, Iterable
from itertools import count
from typing import Any
from zlib import crc32

from nsa_scheduler import (
    EndReason,
    ScheduledBatch,
    ScheduledSequence,
    Scheduler,
    SchedulerConfig,
    Sequence,
    StepUpdate,
)

VOCAB_SIZE = 1000


def next_token(token_ids: list[int]) -> int:
    """The token that follows."""
    return crc32(array("q", token_ids).tobytes()) % VOCAB_SIZE


def uninterrupted(sequence: Sequence, max_sequence_len: int) -> list[int]:
    """The output of a sequence that runs alone, without pages or a prefix cache."""
    tokens = sequence.token_ids[: sequence.num_prompt_tokens]
    num_output = 0
    while num_output < sequence.max_output_tokens and len(tokens) < max_sequence_len:
        tokens.append(next_token(tokens))
        num_output += 1
        if tokens[-1] in sequence.stop_token_ids and num_output >= sequence.min_output_tokens:
            break
    return tokens[sequence.num_prompt_tokens :]


class PagedMemory:
    """What a device holds: a token for each slot of each page."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._token_at: dict[tuple[int, int], int] = {}

    def execute(self, batch: ScheduledBatch) -> dict[int, int]:
        """Write each item's tokens; sample for those that caught up from what the pages hold."""
        for item in batch.items:
            for position in range(item.start, item.end):
                token_id = item.sequence.token_ids[position]
                self._token_at[self._slot(item.sequence, position)] = token_id
        return {i.sequence.sequence_id: self._sample(i) for i in batch.items if i.samples}

    def _sample(self, item: ScheduledSequence) -> int:
        slots = (self._slot(item.sequence, position) for position in range(item.end))
        return next_token([self._token_at[slot] for slot in slots])

    def _slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        page, offset = divmod(position, self._page_size)
        return sequence.pages[page], offset


class Simulation:
    """A scheduler, its memory and all that came out of it; checks integrity after every move."""

    def __init__(
        self, *, num_pages: int = 64, page_size: int = 4, max_model_len: int = 10_000, **limits: Any
    ) -> None:
        self.config = SchedulerConfig(
            num_pages=num_pages, page_size=page_size, max_model_len=max_model_len, **limits
        )
        self.scheduler = Scheduler(self.config)
        self.memory = PagedMemory(page_size)
        self.sequences: list[Sequence] = []
        self.ends: dict[Sequence, EndReason] = {}
        self.num_steps = 0
        self._ids = count()

    def add(self, prompt: Iterable[int], max_output_tokens: int = 8, **fields: Any) -> Sequence:
        """Queue a sequence; what the scheduler raises is passed on."""
        token_ids = list(prompt)
        sequence = Sequence(
            sequence_id=next(self._ids),
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            max_output_tokens=max_output_tokens,
            **fields,
        )
        self.scheduler.add(sequence)
        self.sequences.append(sequence)
        return sequence

    def begin(self) -> ScheduledBatch:
        """Schedule a step and leave it in flight."""
        self.num_steps += 1
        batch = self.scheduler.schedule()
        self.scheduler.check_integrity()
        assert batch.num_tokens <= self.config.max_num_batched_tokens
        assert not {item.sequence for item in batch.items} & set(batch.preempted)
        return batch

    def finish(self, batch: ScheduledBatch, failed: Collection[int] = ()) -> list[StepUpdate]:
        """Run the batch in flight and take it in."""
        token_ids = self.memory.execute(batch)
        updates = self.scheduler.update(batch, token_ids, failed)
        self.scheduler.check_integrity()
        self.ends |= {u.sequence: u.end for u in updates if u.end is not None}
        return updates

    def cancel(self, batch: ScheduledBatch) -> None:
        """Drop the batch in flight."""
        self.scheduler.cancel(batch)
        self.scheduler.check_integrity()

    def step(self, num_steps: int = 1) -> ScheduledBatch:
        """Run steps; return the last one's batch."""
        for _ in range(num_steps):
            batch = self.begin()
            self.finish(batch)
        return batch

    def step_until(self, condition: Callable[[], bool], limit: int = 1000) -> None:
        """Step until the condition holds."""
        for _ in range(limit):
            if condition():
                return
            self.step()
        raise AssertionError(f"not so after {limit} steps")

    def drain(self, limit: int = 20_000) -> None:
        """Run until nothing is left to do; no step may be empty."""
        for _ in range(limit):
            if not self.scheduler.has_work:
                assert self.scheduler.usage == 0.0
                return
            assert self.step(), "there is work and the step is empty"
        raise AssertionError(f"not done after {limit} steps")

    def abort(self, *sequences: Sequence) -> list[Sequence]:
        """Abort; return those that had not ended."""
        aborted = self.scheduler.abort([s.sequence_id for s in sequences])
        self.scheduler.check_integrity()
        self.ends |= dict.fromkeys(aborted, EndReason.ABORT)
        return aborted

    def assert_outputs(self) -> None:
        """All ended, and those that ended by themselves said what they say when alone."""
        for sequence in self.sequences:
            alone = uninterrupted(sequence, self.config.max_sequence_len)
            output = list(sequence.output_token_ids)
            if self.ends[sequence] in (EndReason.STOP, EndReason.LENGTH):
                assert output == alone, f"sequence {sequence.sequence_id}"
            else:
                assert output == alone[: len(output)], f"sequence {sequence.sequence_id}"
