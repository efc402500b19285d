"""A request on the client's side: one prompt, its n sequences in the core, what came of them."""

import hashlib
from collections.abc import Sequence

import msgspec

from nsa_serve.engine.detokenize import Continuation
from nsa_serve.engine.messages import AddSequence, SequenceOutput
from nsa_serve.errors import GenerationError, NsaServeError, RequestError
from nsa_serve.outputs import RequestOutput, RequestTimes, TokenLogprobs
from nsa_serve.params import SamplingParams
from nsa_serve.text.tokenizer import Tokenizer


class Request:
    """Gathers the outputs of the sequences `sequence_ids`, one for each continuation.

    `error` says why a continuation failed, where one did.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        sequence_ids: Sequence[int],
    ) -> None:
        assert len(sequence_ids) == params.n
        self.request_id = request_id
        self.sequence_ids = sequence_ids
        self.error: NsaServeError | None = None
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._params = params
        self._continuations = {
            sequence_id: Continuation(index, tokenizer, params)
            for index, sequence_id in enumerate(sequence_ids)
        }
        self._prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self._num_cached_tokens = 0
        self._times = RequestTimes()

    def messages(self, *, priority: int, salt: bytes, arrived: float) -> list[AddSequence]:
        """What asks the core for all continuations."""
        return [
            AddSequence(
                sequence_id,
                self._prompt_token_ids,
                _params_of(self._params, index),
                priority,
                salt,
                arrived,
            )
            for index, sequence_id in enumerate(self.sequence_ids)
        ]

    @property
    def unfinished_ids(self) -> list[int]:
        """Sequences from which more is expected."""
        return [i for i, c in self._continuations.items() if not c.finished]

    @property
    def finished(self) -> bool:
        """Whether nothing more is expected."""
        return all(c.finished for c in self._continuations.values())

    def push(self, output: SequenceOutput) -> bool:
        """Take in what a step gave; whether that finished the continuation."""
        continuation = self._continuations[output.sequence_id]
        if continuation.finished:
            return False
        continuation.push(output)
        if output.prompt_logprobs and self._prompt_logprobs is not None:
            self._prompt_logprobs += output.prompt_logprobs
        if output.sequence_id == self.sequence_ids[0]:
            self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        if output.times is not None:
            self._times = _joined(self._times, output.times)
        if output.error is not None:
            self.error = self._error(output)
        return continuation.finished

    def _error(self, output: SequenceOutput) -> NsaServeError:
        if output.field_at_fault is None:
            return GenerationError(output.error)
        spec = self._params.structured_outputs
        is_grammar = spec is not None and output.field_at_fault == "structured_outputs"
        field = spec.field if spec is not None and is_grammar else output.field_at_fault
        return RequestError(str(output.error), param=field)

    def abort(self) -> None:
        """Finish what is not finished."""
        for continuation in self._continuations.values():
            continuation.abort()

    def take(self) -> RequestOutput:
        """What is new since the last call; `outputs` holds only continuations with something new.

        The log-probabilities of the prompt come once, when they are complete.
        """
        prompt_logprobs = self._prompt_logprobs
        if prompt_logprobs is not None and len(prompt_logprobs) < len(self._prompt_token_ids):
            prompt_logprobs = None
        if prompt_logprobs is not None:
            self._prompt_logprobs = None
        taken = (continuation.take() for continuation in self._continuations.values())
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=[output for output in taken if output is not None],
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self._num_cached_tokens,
            times=self._times,
        )


def _params_of(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of one continuation: its own seed; the prompt's log-probabilities once."""
    if index == 0:
        return params
    seed = params.seed
    if seed is not None:
        digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
    return msgspec.structs.replace(params, seed=seed, prompt_logprobs=None)


def _joined(a: RequestTimes, b: RequestTimes) -> RequestTimes:
    """Times of a whole request: the first of firsts, the last of lasts."""
    return RequestTimes(
        arrived=_earliest(a.arrived, b.arrived),
        first_scheduled=_earliest(a.first_scheduled, b.first_scheduled),
        first_token=_earliest(a.first_token, b.first_token),
        last_token=max(a.last_token, b.last_token),
    )


def _earliest(a: float, b: float) -> float:
    return min(a, b) if a and b else a or b
