"""What a generation returns, with vLLM's names."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """One candidate at one place: natural log of its probability and its rank (1 = likeliest)."""

    token_id: int
    logprob: float
    rank: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The token that stands at a place, and the likeliest candidates there, best first."""

    chosen: Logprob
    top: list[Logprob]


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds since the epoch; 0 where it has not happened."""

    arrived: float = 0.0
    first_scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One of the n continuations of a prompt: whole, or in a stream what is new since the last."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string or the stop token id that ended it, if one did (not for end-of-text)."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


class RequestOutput(msgspec.Struct, kw_only=True):
    """A prompt and its continuations, in the order of their index."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    times: RequestTimes = RequestTimes()

    @property
    def finished(self) -> bool:
        """Whether every continuation is complete."""
        return all(output.finished for output in self.outputs)
