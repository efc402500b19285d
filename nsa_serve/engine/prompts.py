"""What may be continued: a text, token ids, or a conversation; checked and made token ids."""

from collections.abc import Callable
from typing import Any

import msgspec

from nsa_serve.engine.messages import Ready
from nsa_serve.errors import ContextLengthError, RequestError
from nsa_serve.model.loading.generation import GenerationDefaults
from nsa_serve.params import SamplingParams
from nsa_serve.structured.check import GrammarChecker
from nsa_serve.structured.compiler import NO_END
from nsa_serve.text.tokenizer import Tokenizer


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation, in OpenAI's message format, that the assistant is to continue."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    """Functions that the assistant may call, in OpenAI's format."""


Prompt = str | list[int] | ChatPrompt


def encode_prompt(
    prompt: Prompt, tokenizer: Tokenizer, info: Ready, truncate_to: int | None = None
) -> list[int]:
    """Token ids of a prompt that leaves room for one more token; of a longer one the last
    `truncate_to`, or as many as there is room for if that is −1.

    Raises ContextLengthError if it does not, RequestError if it is empty or no token of the model.
    """
    if isinstance(prompt, ChatPrompt):
        param, token_ids = "messages", tokenizer.encode_chat(prompt.messages, tools=prompt.tools)
    elif isinstance(prompt, str):
        param, token_ids = "prompt", tokenizer.encode(prompt)
    else:
        param, token_ids = "prompt", prompt
    if not token_ids:
        raise RequestError("the prompt is empty", param=param)
    if not (min(token_ids) >= 0 and max(token_ids) < info.vocab_size):
        raise RequestError(f"token ids must be in [0, {info.vocab_size})", param=param)
    limit = max_context_length(info)
    if truncate_to is not None:
        token_ids = token_ids[-(limit - 1 if truncate_to == -1 else truncate_to) :]
    if len(token_ids) >= limit:
        raise ContextLengthError(
            f"This model's maximum context length is {limit} tokens, output included, "
            f"but the prompt has {len(token_ids)} tokens.",
            param=param,
        )
    return token_ids


def prepare_params(
    params: SamplingParams, num_prompt_tokens: int, tokenizer: Tokenizer, info: Ready
) -> SamplingParams:
    """The parameters as the core reads them: `max_tokens` given, bad words as tokens."""
    params = clamp_max_tokens(params, num_prompt_tokens, info)
    if not params.bad_words:
        return params
    spellings = (text for word in params.bad_words for text in (word, " " + word.lstrip()))
    token_ids = {tuple(tokenizer.encode_plain(text)) for text in spellings}
    return msgspec.structs.replace(params, bad_words_token_ids=tuple(sorted(token_ids - {()})))


def check_structured(
    params: SamplingParams, info: Ready, checker: Callable[[], GrammarChecker]
) -> None:
    """Raise RequestError unless the model can be held to the structure that is asked for."""
    spec = params.structured_outputs
    if spec is None:
        return
    if not info.eos_token_ids:
        raise RequestError(NO_END, param=spec.field)
    checker().check(spec)


def max_context_length(info: Ready) -> int:
    """Tokens of prompt and output that the model and its whole cache can hold."""
    return min(info.max_model_len, info.num_pages * info.page_size)


def clamp_max_tokens(params: SamplingParams, num_prompt_tokens: int, info: Ready) -> SamplingParams:
    """The same with `max_tokens` given, and no more than the context still holds."""
    rest = max_context_length(info) - num_prompt_tokens
    if params.max_tokens is not None and params.max_tokens <= rest:
        return params
    return msgspec.structs.replace(params, max_tokens=rest)


def default_params(generation: GenerationDefaults, **fields: Any) -> SamplingParams:
    """The model's own sampling defaults, with `fields` over them."""
    names = SamplingParams.__struct_fields__
    defaults = {name: getattr(generation, name, None) for name in names}
    return SamplingParams(**{k: v for k, v in defaults.items() if v is not None} | fields)
