"""The bodies of requests: every field that is honoured, with its bounds.

Types are strict (a bool is no int, "1" is no number). Fields that are not here arrive in
`model_extra`; validation.py decides which of those are refused and which ignored.
"""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from nsa_serve.params import MAX_BAD_WORDS, MAX_LOGPROBS, MAX_N
from nsa_serve.structured.limits import is_deep

MAX_PROMPTS = 1024
MAX_MESSAGES = 1024
MAX_TOOLS = 128
INT32_MAX = 2**31 - 1

Name = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
NumTokens = Annotated[int, Field(ge=1, le=INT32_MAX)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[TokenId], Field(min_length=1)]
PromptInput = (
    PromptText
    | PromptIds
    | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)
"""What `_check_prompt` lets through; the bounds here are for the OpenAPI document."""


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


class JsonSchema(Body):
    """A schema that the answer must match; `strict` or not, it is enforced."""

    name: Annotated[str, Field(max_length=256)] | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """None takes any object."""


class ResponseFormat(Body):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputsBody(Body):
    """vLLM's way: one of these."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None


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
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=1 << 18)] | None = (
        None
    )
    bad_words: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1024)]],
            Field(max_length=MAX_BAD_WORDS),
        ]
        | None
    ) = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsBody | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = None
    guided_grammar: str | None = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: Annotated[
        PromptInput, PlainValidator(_check_prompt, json_schema_input_type=PromptInput)
    ]
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """0 only with `echo`."""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class TextPart(Body):
    """A piece of a message; images, sound and files are refused."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """What was called, with its arguments as JSON text."""

    name: FunctionName
    arguments: Annotated[str, Field(max_length=1 << 20)] = ""

    def for_template(self) -> dict[str, Any]:
        """As templates read it: the arguments as a value, where they are JSON at all."""
        try:
            arguments = msgspec.json.decode(self.arguments or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            arguments = self.arguments
        if is_deep(arguments):
            arguments = self.arguments
        return {"name": self.name, "arguments": arguments}


class EarlierCall(Body):
    """A call that the assistant made in an earlier turn."""

    id: Annotated[str, Field(max_length=64)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One turn of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}]}
    )

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1024)] | None = None
    """None only where the assistant called functions instead."""
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls", "only the assistant has tool_calls")
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("content", "content must be a string or a list of text parts")
        return self

    def for_template(self) -> dict[str, Any]:
        """What a chat template sees: the content as one text, no field that was not given."""
        text = self.content or ""
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        optional = {"name": self.name, "tool_call_id": self.tool_call_id}
        given: dict[str, Any] = {key: value for key, value in optional.items() if value is not None}
        if self.tool_calls:
            given["tool_calls"] = [
                {"id": call.id, "type": call.type, "function": call.function.for_template()}
                for call in self.tool_calls
            ]
        return {"role": self.role, "content": text, **given}


class Function(Body):
    """A function that the assistant may call."""

    name: FunctionName
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of an object; None takes any."""
    strict: bool | None = None
    """Whether its arguments are held to the schema even where it need not be called."""


class Tool(Body):
    """A function, in OpenAI's wrapping."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """What a chat template sees."""
        shown = {"description": self.function.description, "parameters": self.function.parameters}
        given = {key: value for key, value in shown.items() if value is not None}
        return {"type": "function", "function": {"name": self.function.name, **given}}


class NamedFunction(Body):
    """The name of a function."""

    name: FunctionName


class NamedTool(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatCompletionRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    )

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    """Whether a prompt gets what the tokenizer puts before it, as it does by default."""
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: Name | None = None
    tokens: list[TokenId]
