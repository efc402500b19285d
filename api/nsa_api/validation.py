"""From the bytes of a body to frozen sampling parameters, or a 400 that names the field."""

import re
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from nsa_api.engine import Engine
from nsa_api.errors import ApiError, bad_request
from nsa_api.schemas import SamplingFields
from nsa_api.settings import ApiSettings
from nsa_serve.engine.prompts import Prompt
from nsa_serve.params import SamplingParams, StructuredOutputs
from nsa_serve.structured.limits import MAX_SOURCE_BYTES

T = TypeVar("T")

_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_MAX_NAMED = 32

REFUSED_UNLESS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "kv_transfer_params": (),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
}
"""Fields that would change the answer but are not served, and values that ask for nothing."""


_MAX_GRAMMAR_BYTES = 8 * MAX_SOURCE_BYTES
"""Of a field that describes the output, as it stands in the body: there a character of what is
bounded later may take six bytes."""
_GRAMMAR_FIELDS = (
    "response_format",
    "structured_outputs",
    "tools",
    *(f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar")),
)


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN or Infinity, no lone surrogates, no trailing bytes, UTF-8 only."""
    try:
        if len(body) > _MAX_GRAMMAR_BYTES:
            _refuse_large_grammars(body)
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None


def _refuse_large_grammars(body: bytes) -> None:
    """Raise a 400 before anything is made of them: streams would wait meanwhile."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:  # it is no object; whoever asked for one says so
        return
    for name in _GRAMMAR_FIELDS:
        size = len(bytes(fields.get(name, b"")))
        if size > _MAX_GRAMMAR_BYTES:
            raise bad_request(f"{name}: {size} bytes are more than {_MAX_GRAMMAR_BYTES}", name)


class StrictRequest(Request):
    """A request whose JSON is parsed strictly."""

    async def json(self) -> Any:
        """The parsed body."""
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route over `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, given the strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def ignored_fields(body: BaseModel) -> list[str]:
    """Names of the fields that nothing will honour; raises a 400 for those we must refuse."""
    ignored: dict[str, None] = {}
    for path, name, value in _extras(body):
        if value is None or any(value == harmless for harmless in REFUSED_UNLESS.get(name, ())):
            continue
        if name in REFUSED_UNLESS:
            raise ApiError(
                400, f"{name} is not supported", code="unsupported_parameter", param=name
            )
        if len(ignored) < _MAX_NAMED and _HEADER_SAFE.fullmatch(path + name):
            ignored[path + name] = None
    return list(ignored)


def _extras(body: BaseModel, path: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, value in (body.model_extra or {}).items():
        yield path, name, value
    for name in type(body).model_fields:
        value = getattr(body, name)
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, BaseModel):
                yield from _extras(item, f"{path}{name}.")


def ignored_header(body: BaseModel) -> dict[str, str]:
    """The header that names them, if there are any."""
    names = ignored_fields(body)
    return {"X-Ignored-Fields": ", ".join(names)} if names else {}


def sampling_params(
    body: SamplingFields,
    engine: Engine,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    structured: StructuredOutputs | None,
) -> SamplingParams:
    """The request's fields, then the model's defaults, then OpenAI's; for no tokens at all one,
    as the engine samples no fewer."""
    _check_combinations(body, max_tokens)
    logit_bias = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    stop_token_ids = tuple(body.stop_token_ids or ())
    allowed = body.allowed_token_ids
    _check_in_vocabulary("allowed_token_ids", allowed or (), engine)
    _check_in_vocabulary("logit_bias", logit_bias, engine)
    _check_in_vocabulary("stop_token_ids", stop_token_ids, engine)
    defaults = engine.generation
    return SamplingParams(
        n=_first(body.n, None, 1),
        max_tokens=1 if max_tokens == 0 else max_tokens,
        min_tokens=_first(body.min_tokens, None, 0),
        temperature=_first(body.temperature, defaults.temperature, 1.0),
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        top_k=_first(body.top_k, defaults.top_k, 0),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        seed=body.seed,
        presence_penalty=_first(body.presence_penalty, None, 0.0),
        frequency_penalty=_first(body.frequency_penalty, None, 0.0),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=logit_bias,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=stop_token_ids,
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=body.skip_special_tokens,
        allowed_token_ids=None if allowed is None else tuple(allowed),
        bad_words=tuple(body.bad_words or ()),
        structured_outputs=structured,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )


def check_token_ids(field: str, lists: Iterable[Sequence[int]], engine: Engine) -> None:
    """Raise a 400 for an id that the model does not have."""
    for token_ids in lists:
        _check_in_vocabulary(field, token_ids, engine)


def check_work(
    prompts: Sequence[Prompt],
    params: SamplingParams,
    engine: Engine,
    limits: ApiSettings,
    *,
    echo: bool = False,
) -> None:
    """Bound what one request can ask for, as products."""
    sequences = len(prompts) * params.n
    if sequences > limits.max_request_sequences:
        text = f"prompts × n is {sequences}, at most {limits.max_request_sequences} are served"
        raise bad_request(text, "n")
    context = engine.info.max_model_len
    tokens = sequences * min(params.max_tokens or context, context)
    if tokens > limits.max_request_tokens:
        text = f"prompts × n × max_tokens is {tokens}, at most {limits.max_request_tokens}"
        raise bad_request(f"{text} are served", "max_tokens")
    per_token = echo + (0 if params.prompt_logprobs is None else params.prompt_logprobs + 1)
    if per_token:
        prompt_tokens = sum(min(_most_tokens(prompt), context) for prompt in prompts)
        candidates = prompt_tokens * params.n * per_token
        if candidates > limits.max_request_candidates:
            text = f"what is told of the prompts is {candidates} values,"
            field = "echo" if echo else "prompt_logprobs"
            most = limits.max_request_candidates
            raise bad_request(f"{text} at most {most} are served", field)


def _most_tokens(prompt: Prompt) -> int:
    """How many it can have: no token stands for less than a byte."""
    if isinstance(prompt, list):
        return len(prompt)
    return len(prompt.encode() if isinstance(prompt, str) else msgspec.json.encode(prompt))


def _first(requested: T | None, default: T | None, fallback: T) -> T:
    if requested is not None:
        return requested
    return fallback if default is None else default


def _check_combinations(body: SamplingFields, max_tokens: int | None) -> None:
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise bad_request("prompt_logprobs cannot be streamed", "prompt_logprobs")
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise bad_request("min_tokens must not exceed max_tokens", "min_tokens")


def _check_in_vocabulary(field: str, token_ids: Collection[int], engine: Engine) -> None:
    size = engine.info.vocab_size
    if token_ids and max(token_ids) >= size:
        raise bad_request(f"{field}: token ids must be below {size}, the vocabulary's size", field)
