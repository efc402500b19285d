"""A runner without a model: every token is a pure function of those before it.

What a page holds of a token is a hash chained over all tokens up to it, read back through the
page table, so a wrong, shared or stale page changes the answer, and `expected_continuation` says
what the right answer is. Tests and measurements of everything around a model use it.
"""

import os
import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf

import msgspec
import numpy as np

from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.config import DEFAULT_NUM_BATCHED_TOKENS, DEFAULT_NUM_SEQS, EngineConfig
from nsa_serve.engine.constraint import Constraint, flags_of
from nsa_serve.engine.runner import RunnerInfo, StepResult
from nsa_serve.outputs import Logprob, TokenLogprobs
from nsa_serve.params import SamplingParams

OPTIONS_VARIABLE = "NSA_SERVE_STAND_IN"
NAN_ERROR = "the model computed no number for this request"
_MASK = 2**64 - 1


class StandInOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stand-in behaves; for an engine process, JSON in the variable NSA_SERVE_STAND_IN."""

    vocab_size: int = 259
    eos_token_ids: tuple[int, ...] = (256, 258)
    samples_eos: bool = False
    """Otherwise the token after an end-of-text token is taken instead."""
    step_seconds: float = 0.0
    token_seconds: float = 0.0
    load_error: str | None = None
    raises_on: int | None = None
    """Computing this token raises."""
    nan_on: int | None = None
    """Computing this token makes the row fail."""
    max_step_tokens: int | None = None
    """A step of more tokens runs out of memory."""


def splitmix64(x: int) -> int:
    """The 64-bit finaliser of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def expected_continuation(
    prompt_token_ids: SequenceOf[int],
    num_tokens: int,
    vocab_size: int = 259,
    avoid: Collection[int] = (256, 258),
) -> list[int]:
    """The tokens with which a stand-in continues a prompt, whatever runs beside it."""
    entry = 0
    for token_id in prompt_token_ids:
        entry = splitmix64(entry ^ token_id)
    token_ids = []
    for _ in range(num_tokens):
        token_ids.append(_next_token(entry, vocab_size, avoid))
        entry = splitmix64(entry ^ token_ids[-1])
    return token_ids


def expected_logprob(entry: int, token_id: int) -> float:
    """The log-probability, in (−16, 0], that a stand-in states for a token after an entry."""
    return -16.0 * (splitmix64(entry ^ ~token_id & _MASK) >> 11) / 2**53


class StandInRunner:
    """Implements `Runner` over one 64-bit entry per token."""

    def __init__(self, config: EngineConfig, options: StandInOptions | None = None) -> None:
        self._options = options or _options_from_environment()
        if self._options.load_error:
            raise RuntimeError(self._options.load_error)
        self._info = _info(config, self._options)
        self._avoid = () if self._options.samples_eos else self._info.eos_token_ids
        # Noise, so that a page that was never written holds no right answer; read and written as
        # a flat memoryview, which gives Python's integers several times faster than numpy.
        shape = self._info.num_pages * self._info.page_size
        noise = np.random.default_rng(0).integers(0, _MASK, shape, dtype=np.uint64)
        self._entries = noise.data
        self._params: dict[int, SamplingParams] = {}
        self._constraints: dict[int, Constraint | None] = {}
        self._num_reported: dict[int, int] = {}
        """Prompt tokens whose log-probabilities were reported: not again after a preemption."""

    @property
    def info(self) -> RunnerInfo:
        """The made-up model."""
        return self._info

    @property
    def num_sequences(self) -> int:
        """Sequences added and not removed."""
        return len(self._params)

    def add(
        self,
        sequence_id: int,
        params: SamplingParams,
        prompt_token_ids: list[int],
        constraint: Constraint | None = None,
    ) -> None:
        """Make a sequence known."""
        self._params[sequence_id] = params
        self._constraints[sequence_id] = constraint
        self._num_reported[sequence_id] = 0

    def remove(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._params.pop(sequence_id, None)
        self._constraints.pop(sequence_id, None)
        self._num_reported.pop(sequence_id, None)

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Write the entries of the step's tokens, then read the last of each sequence."""
        options = self._options
        if options.max_step_tokens and batch.num_tokens > options.max_step_tokens:
            raise MemoryError
        if seconds := options.step_seconds + options.token_seconds * batch.num_tokens:
            time.sleep(seconds)
        result = StepResult(token_ids={})
        for item in batch.items:
            self._compute(item, result)
        for item in batch.items:
            if item.samples and item.sequence.sequence_id not in result.failed:
                self._sample(item, result)
        for sequence_id, logprobs in result.prompt_logprobs.items():
            self._num_reported[sequence_id] += len(logprobs)
        return result

    def check(self, sequence: Sequence) -> None:
        """Raise AssertionError unless the pages hold the right entry of every computed token."""
        entry = 0
        for position in range(sequence.num_computed):
            entry = splitmix64(entry ^ sequence.token_ids[position])
            assert self._read(sequence, position) == entry, f"wrong entry of token {position}"

    def _compute(self, item: ScheduledSequence, result: StepResult) -> None:
        sequence, params = item.sequence, self._params[item.sequence.sequence_id]
        entry = self._read(sequence, item.start - 1) if item.start else 0
        unreported = range(self._num_reported[sequence.sequence_id] + 1, sequence.num_prompt_tokens)
        for position in range(item.start, item.end):
            token_id = sequence.token_ids[position]
            if token_id == self._options.raises_on:
                raise ValueError("a token that the stand-in raises on")
            if token_id == self._options.nan_on:
                result.failed[sequence.sequence_id] = NAN_ERROR
            if params.prompt_logprobs is not None and position in unreported:
                result.prompt_logprobs.setdefault(sequence.sequence_id, []).append(
                    _logprobs(entry, token_id, params.prompt_logprobs, self._info.vocab_size)
                )
            entry = splitmix64(entry ^ token_id)
            self._write(sequence, position, entry)

    def _sample(self, item: ScheduledSequence, result: StepResult) -> None:
        sequence, vocab_size = item.sequence, self._info.vocab_size
        entry = self._read(sequence, item.end - 1)
        token_id = _next_token(entry, vocab_size, self._avoid)
        constraint = self._constraints[sequence.sequence_id]
        if constraint is not None:
            allowed = flags_of(constraint.allowed(sequence.output_token_ids), vocab_size)
            if constraint.failure is not None:
                result.failed[sequence.sequence_id] = constraint.failure
                return
            # End-of-text only where nothing else is allowed.
            candidates = np.flatnonzero(allowed).tolist()
            others = [i for i in candidates if i not in self._avoid]
            token_id = (others or candidates)[token_id % len(others or candidates)]
        result.token_ids[sequence.sequence_id] = token_id
        num_top = self._params[sequence.sequence_id].logprobs
        if num_top is not None:
            logprobs = _logprobs(entry, token_id, num_top, vocab_size)
            result.logprobs[sequence.sequence_id] = logprobs

    def _read(self, sequence: Sequence, position: int) -> int:
        page, offset = divmod(position, self._info.page_size)
        return self._entries[sequence.pages[page] * self._info.page_size + offset]

    def _write(self, sequence: Sequence, position: int, entry: int) -> None:
        page, offset = divmod(position, self._info.page_size)
        self._entries[sequence.pages[page] * self._info.page_size + offset] = entry


def _next_token(entry: int, vocab_size: int, avoid: Collection[int]) -> int:
    token_id = splitmix64(entry) % vocab_size
    while token_id in avoid:
        token_id = (token_id + 1) % vocab_size
    return token_id


def _logprobs(entry: int, token_id: int, num_top: int, vocab_size: int) -> TokenLogprobs:
    """The token as if it were the likeliest, and made-up runners-up below it."""
    chosen = Logprob(token_id, expected_logprob(entry, token_id), 1)
    top = [
        Logprob((token_id + i) % vocab_size, chosen.logprob - i, i + 1)
        for i in range(min(num_top, vocab_size))
    ]
    return TokenLogprobs(chosen, top)


def _options_from_environment() -> StandInOptions:
    return msgspec.json.decode(os.environ.get(OPTIONS_VARIABLE, "{}"), type=StandInOptions)


def _info(config: EngineConfig, options: StandInOptions) -> RunnerInfo:
    page_size = config.block_size or 16
    max_model_len = config.max_model_len or 8192
    return RunnerInfo(
        model_name="stand-in",
        max_model_len=max_model_len,
        vocab_size=options.vocab_size,
        eos_token_ids=options.eos_token_ids,
        num_pages=config.num_pages or 8 * -(-max_model_len // page_size),
        page_size=page_size,
        device="cpu",
        dtype="uint64",
        attention="none",
        cache_key=b"stand-in",
        report="",
        max_num_seqs=config.max_num_seqs or DEFAULT_NUM_SEQS,
        max_num_batched_tokens=config.max_num_batched_tokens or DEFAULT_NUM_BATCHED_TOKENS,
    )
