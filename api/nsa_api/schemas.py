"""The bodies of requests: every field that is honoured, with its bounds.

Types are strict (a bool is no int, "1" is no number). Fields that are not here arrive in
`model_extra`; validation.py decides which of those are refused and which ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from nsa_serve.params import MAX_LOGPROBS, MAX_N

MAX_PROMPTS = 1024
MAX_MESSAGES = 1024
INT32_MAX = 2**31 - 1

PromptInput = str | list[str] | list[int] | list[list[int]]
Name = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
NumTokens = Annotated[int, Field(ge=1, le=INT32_MAX)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]


def _is_token_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(item) is int and 0 <= item <= INT32_MAX for item in value)
    )


def _check_prompt(value: Any) -> PromptInput:
    """By hand, since a union over a long list would report an error per item and member."""
    if isinstance(value, str) and value:
        return value
    if _is_token_ids(value):
        return list(value)
    if isinstance(value, list) and 0 < len(value) <= MAX_PROMPTS:
        if all(isinstance(item, str) and item for item in value):
            return list(value)
        if all(_is_token_ids(item) for item in value):
            return list(value)
    raise PydanticCustomError(
        "prompt",
        "must be a non-empty string, a list of token ids, "
        f"or a list of 1 to {MAX_PROMPTS} of either kind",
    )


class Body(BaseModel):
    """Strict types, unknown fields kept aside."""

    model_config = ConfigDict(strict=True, extra="allow")


class StreamOptions(Body):
    """What a stream reports besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(Body):
    """What completions and chat share; None stands for the server's default."""

    model: Name
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: NumTokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=1 << 18),
        ]
        | None
    ) = None
    stop: StopText | Annotated[list[StopText], Field(max_length=64)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=INT32_MAX)] = 0
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: Annotated[
        PromptInput, PlainValidator(_check_prompt, json_schema_input_type=PromptInput)
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class TextPart(Body):
    """A piece of a message; images, sound and files are refused."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=64)] | None = None

    def for_template(self) -> dict[str, str]:
        """What a chat template sees: the content as one text, no field that was not given."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        optional = {"name": self.name, "tool_call_id": self.tool_call_id}
        given = {key: value for key, value in optional.items() if value is not None}
        return {"role": self.role, "content": text, **given}


class ChatCompletionRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: Name | None = None
    tokens: list[TokenId]
