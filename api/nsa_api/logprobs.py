"""Log-probabilities in the three formats that clients know."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from nsa_api.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    ChatTopLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
)
from nsa_serve.outputs import RequestOutput, TokenLogprobs
from nsa_serve.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for −∞, which JSON cannot say."""


def completion_logprobs(
    tokenizer: Tokenizer, places: Sequence[TokenLogprobs], *, num_top: int, offset: int
) -> CompletionLogprobs:
    """The legacy format; `offset` is the length of the token texts that came before."""
    texts = [tokenizer.token_text(place.chosen.token_id) for place in places]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return CompletionLogprobs(
        tokens=texts,
        token_logprobs=[max(place.chosen.logprob, LOWEST) for place in places],
        top_logprobs=[_by_text(tokenizer, place) for place in places] if num_top else None,
        text_offset=offsets,
    )


def _by_text(tokenizer: Tokenizer, place: TokenLogprobs) -> dict[str, float]:
    """Best first; of two tokens with one text the likelier stays; the chosen one is there."""
    result: dict[str, float] = {}
    for candidate in (*place.top, place.chosen):
        text = tokenizer.token_text(candidate.token_id)
        result.setdefault(text, max(candidate.logprob, LOWEST))
    return result


def chat_logprobs(tokenizer: Tokenizer, places: Sequence[TokenLogprobs]) -> ChatLogprobs:
    """The chat format."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token=tokenizer.token_text(place.chosen.token_id),
                logprob=max(place.chosen.logprob, LOWEST),
                bytes=list(tokenizer.token_bytes(place.chosen.token_id)),
                top_logprobs=[
                    ChatTopLogprob(
                        token=tokenizer.token_text(candidate.token_id),
                        logprob=max(candidate.logprob, LOWEST),
                        bytes=list(tokenizer.token_bytes(candidate.token_id)),
                    )
                    for candidate in place.top
                ],
            )
            for place in places
        ]
    )


def prompt_logprobs(
    tokenizer: Tokenizer, output: RequestOutput | None
) -> PromptLogprobs | UnsetType:
    """vLLM's format: candidates by token id for each place of the prompt, null for the first."""
    if output is None or output.prompt_logprobs is None:
        return UNSET
    return [
        None
        if place is None
        else {
            str(candidate.token_id): PromptLogprob(
                logprob=max(candidate.logprob, LOWEST),
                rank=candidate.rank,
                decoded_token=tokenizer.token_text(candidate.token_id),
            )
            for candidate in (*place.top, place.chosen)
        }
        for place in output.prompt_logprobs
    ]
