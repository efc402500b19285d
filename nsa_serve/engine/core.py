"""The engine's one loop: schedule, run, update. It knows token ids and sequences, no text."""

import logging
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from nsa_scheduler import NeverFits, QueueFull, Scheduler, SchedulerConfig
from nsa_scheduler.output import ScheduledBatch
from nsa_scheduler.sequence import Sequence
from nsa_serve.config import EngineConfig
from nsa_serve.engine.constraint import constraint_of
from nsa_serve.engine.faults import INTERNAL_ERROR, StepExecutor
from nsa_serve.engine.load import load_tokenizer_json
from nsa_serve.engine.messages import (
    AbortSequences,
    AddSequence,
    EngineStats,
    Ready,
    Selection,
    SequenceOutput,
    SequenceProgress,
    StepOutputs,
    ToCore,
    WatchSequence,
)
from nsa_serve.engine.progress_report import progress_of
from nsa_serve.engine.reads import ReadCounter
from nsa_serve.engine.report import StepReporter
from nsa_serve.engine.runner import Runner, RunnerInfo, StepResult, Watchable
from nsa_serve.errors import RequestError
from nsa_serve.outputs import RequestTimes
from nsa_serve.params import check_token_ids
from nsa_serve.structured.compiler import GrammarCompiler
from nsa_serve.structured.matcher import Grammar

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT_FOR_GRAMMARS = 0.005


class EngineCore:
    """Drives one runner. Not thread-safe: one loop adds, aborts and steps."""

    def __init__(self, config: EngineConfig, runner: Runner) -> None:
        self.info = runner.info
        self._runner = runner
        self._executor = StepExecutor(runner)
        self._scheduler = Scheduler(_scheduler_config(config, runner.info))
        self._reporter = StepReporter()
        self._refused: list[SequenceOutput] = []
        self._grammars = GrammarCompiler(
            partial(load_tokenizer_json, config),
            self.info.vocab_size,
            list(self.info.eos_token_ids),
        )
        self._compiling: dict[int, tuple[AddSequence, Future[Grammar]]] = {}
        """Sequences that wait for their grammar, in the order of their arrival."""
        self._num_steps = 0
        self._selections: list[Selection] = []
        """To be told with the next step, to those who watch."""
        self._progress_wanted = False
        self._reads = ReadCounter(
            self.info.sparse, self.info.num_nsa_layers, self.info.num_dense_layers
        )

    @property
    def ready(self) -> Ready:
        """What a client is told of the runner."""
        fields = {name: getattr(self.info, name) for name in Ready.__struct_fields__}
        return Ready(**fields | {"eos_token_ids": list(self.info.eos_token_ids)})

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._refused or self._compiling) or self._scheduler.has_work

    def prepare_grammars(self) -> None:
        """Make the first request for structured output as quick as those after it."""
        self._grammars.prepare()

    def step(self) -> StepOutputs:
        """Compute at most one new token of every sequence."""
        if self._compiling:
            self._take_compiled()
        started = time.time()
        outputs, self._refused = self._refused, []
        batch = self._scheduler.schedule()
        if batch:
            result = self._execute(batch)
            self._selections += result.selections
            updates = self._scheduler.update(batch, result.token_ids, result.failed)
            outputs += self._reporter.outputs(updates, result, started, time.time())
            self._num_steps += 1
            self._reads.add(batch)
            for update in updates:
                if update.end is not None:
                    self._forget(update.sequence.sequence_id)
        return StepOutputs(outputs, self._stats(batch), *self._told_to_watchers())

    def handle(self, message: ToCore) -> None:
        """Do what a client asks."""
        match message:
            case AddSequence():
                self.add(message)
            case AbortSequences(sequence_ids):
                self.abort(sequence_ids)
            case WatchSequence(sequence_id):
                self._watch(sequence_id)
            case _:
                self._progress_wanted = True

    def _watch(self, sequence_id: int) -> None:
        if self._scheduler.find(sequence_id) is None:
            reason = "the sequence waits for its grammar, or has ended"
        elif isinstance(self._runner, Watchable):
            self._runner.watch(sequence_id)
            return
        else:
            reason = "this runner has no layers"
        self._selections.append(Selection(sequence_id, unavailable=reason))

    def _told_to_watchers(self) -> tuple[list[Selection] | None, list[SequenceProgress] | None]:
        """Nothing, unless somebody watches."""
        if not self._selections and not self._progress_wanted:
            return None, None
        selections, self._selections = self._selections, []
        progress: list[SequenceProgress] | None = None
        if self._progress_wanted:
            self._progress_wanted = False
            compiling = (message for message, _ in self._compiling.values())
            progress = progress_of(self._reporter.arrivals, self._scheduler, compiling)
        return selections or None, progress

    def add(self, message: AddSequence) -> None:
        """Queue a sequence, once its grammar, if it has one, is compiled. A refusal is an output
        of a later step, with an error."""
        spec = message.params.structured_outputs
        if spec is None:
            self._add(message, None)
        else:
            self._compiling[message.sequence_id] = message, self._grammars.submit(spec)

    def _take_compiled(self) -> None:
        """Queue the sequences whose grammars are ready; where nothing else is to be done, wait."""
        if not self._scheduler.has_work and not self._refused:
            futures = [future for _, future in self._compiling.values()]
            wait(futures, _SECONDS_TO_WAIT_FOR_GRAMMARS, FIRST_COMPLETED)
        for sequence_id, (message, future) in list(self._compiling.items()):
            if future.done():
                del self._compiling[sequence_id]
                error = future.exception()
                if isinstance(error, Exception):
                    self._refused.append(_refusal(message, error))
                else:
                    self._add(message, future.result())

    def _add(self, message: AddSequence, grammar: Grammar | None) -> None:
        params = message.params
        eos = frozenset() if params.ignore_eos else frozenset(self.info.eos_token_ids)
        try:
            check_token_ids(params, self.info.vocab_size)
            constraint = constraint_of(params, self.info.vocab_size, grammar)
            self._runner.add(message.sequence_id, params, message.prompt_token_ids, constraint)
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
        for sequence_id in sequence_ids:
            self._compiling.pop(sequence_id, None)
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
            # Where a grammar leaves nothing but the end, it may come before min_tokens.
            min_output_tokens=0 if params.structured_outputs else params.min_tokens,
        )

    def _forget(self, sequence_id: int) -> None:
        self._reporter.forget(sequence_id)
        self._runner.remove(sequence_id)

    def _stats(self, batch: ScheduledBatch) -> EngineStats:
        scheduler, read = self._scheduler, self._reads.total
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
            compressed_tokens_read=read.compressed,
            selected_tokens_read=read.selected,
            window_tokens_read=read.window,
            dense_tokens_read=read.dense,
            context_tokens=read.context,
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
    field = error.param if isinstance(error, RequestError) else None
    return SequenceOutput(
        message.sequence_id, [], "error", times=times, error=text, field_at_fault=field
    )
