"""Runs a step so that a fault ends only the sequences that cause it."""

import logging
import sys

from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_serve.engine.runner import Runner, StepResult

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "internal error while computing this request"
OUT_OF_MEMORY = "out of memory while computing this request"
_STEPS_BEFORE_GROWTH = 256


class StepExecutor:
    """Executes batches on a runner; a part that raises is halved until the guilty stand alone.

    Pages of the whole batch are assigned before it runs, so its parts can run one after the
    other, and running a part again writes the same content to the same places. After running out
    of memory, later steps are cut to the size that did fit; that limit doubles after every
    256 steps without a fault.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._token_limit = sys.maxsize
        self._quiet_steps = 0

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Run one step. Raises only what no later step could survive either."""
        self._grow_limit()
        total = StepResult(token_ids={})
        ran_out, largest = False, 0
        waiting = [batch]
        while waiting:
            part = _without(waiting.pop(), total.failed)
            if not part:
                continue
            if part.num_tokens > self._token_limit:
                waiting += _halves(part, by_token=True)
                continue
            result = self._attempt(part)
            if isinstance(result, StepResult):
                _merge(total, result)
                largest = max(largest, part.num_tokens)
                continue
            out_of_memory = result == OUT_OF_MEMORY
            ran_out |= out_of_memory
            parts = _halves(part, by_token=out_of_memory)
            waiting += parts
            if not parts:
                total.failed[part.items[0].sequence.sequence_id] = result
        if ran_out and largest:
            self._token_limit = largest
        return total

    def _attempt(self, batch: ScheduledBatch) -> StepResult | str:
        """The result, or what the failure is called.

        The exception is gone on return: its traceback would keep the tensors of the failed step
        alive while the next attempt needs their memory.
        """
        try:
            return self._runner.execute(batch)
        except Exception as error:
            if _is_fatal(error):
                raise
            out_of_memory = _is_out_of_memory(error)
            logger.error("a step of %d sequences failed", len(batch.items), exc_info=error)
        self._quiet_steps = 0
        return OUT_OF_MEMORY if out_of_memory else INTERNAL_ERROR

    def _grow_limit(self) -> None:
        self._quiet_steps += 1
        if self._quiet_steps >= _STEPS_BEFORE_GROWTH and self._token_limit < sys.maxsize:
            self._token_limit = min(2 * self._token_limit, sys.maxsize)
            self._quiet_steps = 0


def _halves(batch: ScheduledBatch, *, by_token: bool) -> list[ScheduledBatch]:
    """Two parts, the later first; none where there is nothing to halve.

    A single sequence is halved only `by_token`, into an earlier and a later chunk.
    """
    items = batch.items
    if len(items) == 1 and by_token:
        items = _chunks(items[0])
    if len(items) == 1:
        return []
    middle = len(items) // 2
    return [ScheduledBatch(items[middle:]), ScheduledBatch(items[:middle], batch.preempted)]


def _chunks(item: ScheduledSequence) -> list[ScheduledSequence]:
    half = item.num_tokens // 2
    if half == 0:
        return [item]
    later = ScheduledSequence(item.sequence, item.start + half, item.num_tokens - half)
    return [ScheduledSequence(item.sequence, item.start, half), later]


def _without(batch: ScheduledBatch, failed: dict[int, str]) -> ScheduledBatch:
    if not failed:
        return batch
    items = [item for item in batch.items if item.sequence.sequence_id not in failed]
    return ScheduledBatch(items, batch.preempted)


def _merge(total: StepResult, part: StepResult) -> None:
    total.token_ids.update(part.token_ids)
    total.logprobs.update(part.logprobs)
    total.failed.update(part.failed)
    total.selections += part.selections
    for sequence_id, logprobs in part.prompt_logprobs.items():
        total.prompt_logprobs.setdefault(sequence_id, []).extend(logprobs)


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _is_fatal(error: Exception) -> bool:
    """Whether the device's context is lost, so that every later step would fail."""
    torch = sys.modules.get("torch")
    lost = getattr(torch, "AcceleratorError", None)
    return lost is not None and isinstance(error, lost)
