"""Runs a model's steps: inputs, forward pass, sampling."""

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_serve.engine.constraint import Constraint
from nsa_serve.engine.inputs import SlotRule, StepInputs, build_inputs
from nsa_serve.engine.messages import Selection
from nsa_serve.engine.runner import RunnerInfo, StepResult
from nsa_serve.engine.sampler import SamplingState, logprobs_of, sample, sampling_state
from nsa_serve.engine.selection import selection_of
from nsa_serve.engine.watched import Watched
from nsa_serve.model.compiled import CompiledSteps, one_torch_thread
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.paged import PagedContext
from nsa_serve.outputs import TokenLogprobs
from nsa_serve.params import SamplingParams

NOT_A_NUMBER = "the model computed NaN for this request"
_PROMPT_ROWS = 64
"""Rows of prompt logits made at once: a row of a large vocabulary takes hundreds of kilobytes."""


class Head(Protocol):
    """Whatever makes logits."""

    def logits(self, hidden: Tensor, /) -> Tensor:
        """[N, hidden] → [N, vocab] float32"""


class ModelRunner:
    """Implements `Runner` over a decoder and its caches."""

    def __init__(
        self,
        decoder: Decoder,
        caches: list[LayerCache],
        info: RunnerInfo,
        compiled: CompiledSteps | None = None,
    ) -> None:
        """`compiled` computes the steps that it takes, the decoder the others."""
        self._decoder, self._caches, self._info = decoder, caches, info
        self._compiled = compiled
        self._head: Head = decoder if compiled is None else compiled
        self._device = caches[0].k.device
        nsa = decoder.config.nsa
        self._rule = None if nsa is None else SlotRule(nsa.compress_stride, nsa.first_slot)
        self._states: dict[int, SamplingState] = {}
        self._watched = Watched(self._look)

    @property
    def info(self) -> RunnerInfo:
        """What was loaded."""
        return self._info

    def add(
        self,
        sequence_id: int,
        params: SamplingParams,
        prompt_token_ids: list[int],
        constraint: Constraint | None = None,
    ) -> None:
        """Make a sequence known."""
        self._states[sequence_id] = sampling_state(
            params, prompt_token_ids, self._info.eos_token_ids, constraint
        )

    def remove(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._states.pop(sequence_id, None)
        self._watched.discard(sequence_id)

    def watch(self, sequence_id: int) -> None:
        """Tell with the sequence's next decode step what its layers select."""
        self._watched.add(sequence_id)

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step: hidden states of all tokens, logits where they are asked for."""
        selections = self._watched.look(batch.items)
        result = self._execute(batch)
        result.selections = selections
        return result

    def _look(self, item: ScheduledSequence) -> Selection:
        with nullcontext() if self._compiled is None else one_torch_thread():
            return selection_of(self._decoder, self._caches, item, self._rule)

    def _execute(self, batch: ScheduledBatch) -> StepResult:
        inputs = build_inputs(batch, self._info.page_size, self._rule, self._device)
        tokens = inputs.token_ids, inputs.positions
        if self._compiled is not None and self._compiled.takes(inputs.meta):
            with one_torch_thread():
                return self._result(inputs, self._compiled.hidden(*tokens, inputs.meta))
        context = PagedContext(self._caches, inputs.meta, self._decoder.rope)
        return self._result(inputs, self._decoder(*tokens, context))

    def _result(self, inputs: StepInputs, hidden: Tensor) -> StepResult:
        """Of hidden states [T, hidden]."""
        result = StepResult(token_ids={}, failed=self._broken(inputs, hidden))
        for item, start in zip(inputs.items, inputs.starts, strict=True):
            if item.sequence.sequence_id in result.failed:
                continue
            own = hidden[start : start + item.num_tokens]
            state = self._states[item.sequence.sequence_id]
            logprobs = prompt_logprobs(self._head, item, own, state)
            if logprobs:
                result.prompt_logprobs[item.sequence.sequence_id] = logprobs
        self._sample(inputs, hidden, result)
        for sequence_id, logprobs in result.prompt_logprobs.items():
            self._states[sequence_id].num_prompt_logprobs += len(logprobs)
        return result

    def _broken(self, inputs: StepInputs, hidden: Tensor) -> dict[int, str]:
        """Sequences that fail because what they computed is not finite. The pages that they wrote
        are erased: nobody else has them yet."""
        finite = hidden.isfinite().all(-1)
        failed: dict[int, str] = {}
        if bool(finite.all()):
            return failed
        for item, start in zip(inputs.items, inputs.starts, strict=True):
            own = slice(start, start + item.num_tokens)
            if not bool(finite[own].all()):
                failed[item.sequence.sequence_id] = NOT_A_NUMBER
                pages = (inputs.meta.token_rows[own] // self._info.page_size).unique()
                for cache in self._caches:
                    cache.erase(pages)
        return failed

    def _sample(self, inputs: StepInputs, hidden: Tensor, result: StepResult) -> None:
        """A token for every sequence that caught up and has not failed."""
        due = [
            (item, start + item.num_tokens - 1)
            for item, start in zip(inputs.items, inputs.starts, strict=True)
            if item.samples and item.sequence.sequence_id not in result.failed
        ]
        if not due:
            return
        logits = self._head.logits(hidden[[row for _, row in due]])
        finite = logits.amax(-1).isfinite().tolist()
        if not all(finite):
            bad = [item for (item, _), ok in zip(due, finite, strict=True) if not ok]
            result.failed.update((item.sequence.sequence_id, NOT_A_NUMBER) for item in bad)
            logits = logits[finite]
            due = [entry for entry, ok in zip(due, finite, strict=True) if ok]
        sequences = [item.sequence for item, _ in due]
        states = [self._states[sequence.sequence_id] for sequence in sequences]
        outputs = [sequence.output_token_ids for sequence in sequences]
        tokens = sample(logits, states, outputs)
        for row, (sequence, state, token) in enumerate(zip(sequences, states, tokens, strict=True)):
            if state.failure is not None:
                result.failed[sequence.sequence_id] = state.failure
                continue
            result.token_ids[sequence.sequence_id] = token
            if state.params.logprobs is not None:
                result.logprobs[sequence.sequence_id] = logprobs_of(
                    logits[row : row + 1], [token], state.params.logprobs
                )[0]


def prompt_logprobs(
    head: Head, item: ScheduledSequence, hidden: Tensor, state: SamplingState
) -> list[TokenLogprobs]:
    """Of the prompt tokens that follow the item's tokens: hidden [num_tokens, hidden]."""
    num_top = state.params.prompt_logprobs
    if num_top is None:
        return []
    sequence = item.sequence
    start = max(item.start, state.num_prompt_logprobs)
    following = sequence.token_ids[start + 1 : min(item.end + 1, sequence.num_prompt_tokens)]
    hidden = hidden[start - item.start :]
    out: list[TokenLogprobs] = []
    for first in range(0, len(following), _PROMPT_ROWS):
        tokens = following[first : first + _PROMPT_ROWS]
        logits = head.logits(hidden[first : first + len(tokens)])
        out += logprobs_of(logits, tokens, num_top)
    return out
