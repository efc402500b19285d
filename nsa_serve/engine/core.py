"""The engine's one loop: schedule, run, update. It knows token ids and sequences, no text."""

import logging
import time
from collections.abc import Collection

from nsa_scheduler import NeverFits, QueueFull, Scheduler, SchedulerConfig
from nsa_scheduler.output import ScheduledBatch
from nsa_scheduler.sequence import Sequence
from nsa_serve.config import EngineConfig
from nsa_serve.engine.faults import INTERNAL_ERROR, StepExecutor
from nsa_serve.engine.messages import (
    AbortSequences,
    AddSequence,
    EngineStats,
    Ready,
    SequenceOutput,
    StepOutputs,
)
from nsa_serve.engine.report import StepReporter
from nsa_serve.engine.runner import Runner, RunnerInfo, StepResult
from nsa_serve.errors import RequestError
from nsa_serve.outputs import RequestTimes
from nsa_serve.params import check_token_ids

logger = logging.getLogger(__name__)


class EngineCore:
    """Drives one runner. Not thread-safe: one loop adds, aborts and steps."""

    def __init__(self, config: EngineConfig, runner: Runner) -> None:
        self.info = runner.info
        self._runner = runner
        self._executor = StepExecutor(runner)
        self._scheduler = Scheduler(_scheduler_config(config, runner.info))
        self._reporter = StepReporter()
        self._refused: list[SequenceOutput] = []
        self._num_steps = 0

    @property
    def ready(self) -> Ready:
        """What a client is told of the runner."""
        fields = {name: getattr(self.info, name) for name in Ready.__struct_fields__}
        return Ready(**fields | {"eos_token_ids": list(self.info.eos_token_ids)})

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._refused) or self._scheduler.has_work

    def step(self) -> StepOutputs:
        """Compute at most one new token of every sequence."""
        started = time.time()
        outputs, self._refused = self._refused, []
        batch = self._scheduler.schedule()
        if batch:
            result = self._execute(batch)
            updates = self._scheduler.update(batch, result.token_ids, result.failed)
            outputs += self._reporter.outputs(updates, result, started, time.time())
            self._num_steps += 1
            for update in updates:
                if update.end is not None:
                    self._forget(update.sequence.sequence_id)
        return StepOutputs(outputs, self._stats(batch))

    def handle(self, message: AddSequence | AbortSequences) -> None:
        """Do what a client asks."""
        if isinstance(message, AddSequence):
            self.add(message)
        else:
            self.abort(message.sequence_ids)

    def add(self, message: AddSequence) -> None:
        """Queue a sequence. A refusal is an output of the next step, with an error."""
        params = message.params
        eos = frozenset() if params.ignore_eos else frozenset(self.info.eos_token_ids)
        try:
            check_token_ids(params, self.info.vocab_size)
            self._runner.add(message.sequence_id, params, message.prompt_token_ids)
            self._scheduler.add(self._sequence(message, eos))
        except Exception as error:
            self._runner.remove(message.sequence_id)
            self._refused.append(_refusal(message, error))
            return
        reported = frozenset(params.stop_token_ids) - eos
        self._reporter.track(message.sequence_id, message.arrived, reported)

    def abort(self, sequence_ids: Collection[int]) -> None:
        """Forget sequences in whatever state they are; nothing more is output for them."""
        self._refused = [o for o in self._refused if o.sequence_id not in sequence_ids]
        for sequence in self._scheduler.abort(sequence_ids):
            self._forget(sequence.sequence_id)

    def check_integrity(self) -> bool:
        """Whether every page is accounted for once; logs an error if not. O(pages)."""
        try:
            self._scheduler.check_integrity()
        except AssertionError as error:
            logger.error("the page pool is inconsistent: %s", error)
            return False
        return True

    def _execute(self, batch: ScheduledBatch) -> StepResult:
        try:
            return self._executor.execute(batch)
        except BaseException:  # Ctrl-C in a notebook too: the core can go on afterwards
            self._scheduler.cancel(batch)
            raise

    def _sequence(self, message: AddSequence, eos: frozenset[int]) -> Sequence:
        params = message.params
        num_prompt_tokens = len(message.prompt_token_ids)
        rest = self.info.max_model_len - num_prompt_tokens
        return Sequence(
            sequence_id=message.sequence_id,
            token_ids=message.prompt_token_ids.copy(),
            num_prompt_tokens=num_prompt_tokens,
            max_output_tokens=rest if params.max_tokens is None else params.max_tokens,
            priority=message.priority,
            salt=message.salt,
            may_read_prefix_cache=params.prompt_logprobs is None,
            stop_token_ids=eos.union(params.stop_token_ids),
            min_output_tokens=params.min_tokens,
        )

    def _forget(self, sequence_id: int) -> None:
        self._reporter.forget(sequence_id)
        self._runner.remove(sequence_id)

    def _stats(self, batch: ScheduledBatch) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_cache_usage=scheduler.usage,
            num_pages=self.info.num_pages,
            num_steps=self._num_steps,
            step_tokens=batch.num_tokens,
            prompt_tokens=self._reporter.prompt_tokens,
            generation_tokens=self._reporter.generation_tokens,
            prefix_cache_queries=scheduler.stats.prefix_cache_queries,
            prefix_cache_hits=scheduler.stats.prefix_cache_hits,
            num_preemptions=scheduler.stats.num_preemptions,
        )


def _scheduler_config(config: EngineConfig, info: RunnerInfo) -> SchedulerConfig:
    return SchedulerConfig(
        num_pages=info.num_pages,
        page_size=info.page_size,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        num_lookahead_tokens=info.num_lookahead_tokens,
        max_model_len=info.max_model_len,
        policy=config.scheduling_policy,
        enable_prefix_caching=config.enable_prefix_caching,
        # A burst is queued whole before the first of it runs; the client bounds it.
        max_num_queued=info.max_num_seqs + config.max_num_queued_reqs,
        cache_key=info.cache_key,
    )


def _refusal(message: AddSequence, error: Exception) -> SequenceOutput:
    if isinstance(error, (NeverFits, QueueFull, RequestError)):
        text = str(error)
    else:
        logger.error("a sequence could not be added", exc_info=error)
        text = INTERNAL_ERROR
    times = RequestTimes(arrived=message.arrived)
    return SequenceOutput(message.sequence_id, [], "error", times=times, error=text)
