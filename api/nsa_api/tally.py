"""Counts the tokens of one request while its outputs pass, for usage and for metrics."""

from dataclasses import dataclass, field

from nsa_api.responses import PromptTokensDetails, Usage
from nsa_serve.outputs import FinishReason, RequestOutput, RequestTimes
from nsa_serve.params import SamplingParams


@dataclass(slots=True)
class Tally:
    """Totals over the prompts of a request and their continuations."""

    params: SamplingParams
    num_prompts: int
    completion_id: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[FinishReason] = field(default_factory=list)
    times: dict[int, RequestTimes] = field(default_factory=dict)
    """Of each prompt that has an output, by its index."""

    def add(self, prompt_index: int, output: RequestOutput) -> None:
        """Count what is new."""
        if prompt_index not in self.times:
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens
        self.times[prompt_index] = output.times
        for completion in output.outputs:
            self.completion_tokens += len(completion.token_ids)
            if completion.finish_reason is not None:
                self.finish_reasons.append(completion.finish_reason)

    @property
    def num_unfinished(self) -> int:
        """Continuations that have not come to their end."""
        return self.num_prompts * self.params.n - len(self.finish_reasons)

    def usage(self) -> Usage:
        """Totals so far."""
        return self._usage(self.completion_tokens)

    def prompt_usage(self) -> Usage:
        """Totals before the first token."""
        return self._usage(0)

    def _usage(self, completion_tokens: int) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=self.prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(self.cached_tokens),
        )
