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
from nsa_serve.outputs import Logprob, RequestOutput, TokenLogprobs
from nsa_serve.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for −∞, which JSON cannot say."""


def completion_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    places: Sequence[TokenLogprobs | None],
    *,
    num_top: int,
    offset: int,
) -> CompletionLogprobs:
    """The legacy format; `offset` is the length of the token texts that came before."""
    texts = [tokenizer.token_text(token_id) for token_id in token_ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return CompletionLogprobs(
        tokens=texts,
        token_logprobs=[None if place is None else _finite(place.chosen) for place in places],
        top_logprobs=[
            None if place is None else _by_text(tokenizer, place, num_top) for place in places
        ]
        if num_top
        else None,
        text_offset=offsets,
    )


def _by_text(tokenizer: Tokenizer, place: TokenLogprobs, num_top: int) -> dict[str, float]:
    """Best first; of two tokens with one text the likelier stays; the chosen one is there."""
    result: dict[str, float] = {}
    for candidate in (*place.top[:num_top], place.chosen):
        text = tokenizer.token_text(candidate.token_id)
        result.setdefault(text, _finite(candidate))
    return result


def chat_logprobs(tokenizer: Tokenizer, places: Sequence[TokenLogprobs]) -> ChatLogprobs:
    """The chat format."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token=tokenizer.token_text(place.chosen.token_id),
                logprob=_finite(place.chosen),
                bytes=list(tokenizer.token_bytes(place.chosen.token_id)),
                top_logprobs=[
                    ChatTopLogprob(
                        token=tokenizer.token_text(candidate.token_id),
                        logprob=_finite(candidate),
                        bytes=list(tokenizer.token_bytes(candidate.token_id)),
                    )
                    for candidate in place.top
                ],
            )
            for place in places
        ]
    )


def prompt_logprobs(
    tokenizer: Tokenizer, output: RequestOutput, num_top: int | None
) -> PromptLogprobs | UnsetType:
    """vLLM's format: candidates by token id for each place of the prompt, null for the first."""
    if num_top is None or output.prompt_logprobs is None:
        return UNSET
    return [
        None
        if place is None
        else {
            str(candidate.token_id): PromptLogprob(
                logprob=_finite(candidate),
                rank=candidate.rank,
                decoded_token=tokenizer.token_text(candidate.token_id),
            )
            for candidate in (*place.top[:num_top], place.chosen)
        }
        for place in output.prompt_logprobs
    ]


def _finite(candidate: Logprob) -> float:
    return max(candidate.logprob, LOWEST)
