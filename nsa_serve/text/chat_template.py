"""Chat templates: jinja2 in an immutable sandbox, with the environment that transformers gives."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nsa_serve.errors import ModelLoadError, RequestError
from nsa_serve.text.tools import OPEN

Message = Mapping[str, Any]

_PROBE: list[Message] = [{"role": "user", "content": "Hello"}]


class ChatTemplate:
    """A model's chat template, compiled once and rendered once on construction as a proof.

    Raises `ModelLoadError` if the source does not compile or cannot render one user message.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the variables bos_token, eos_token and so on."""
        self._special_tokens = dict(special_tokens)
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            self.tells_tools = _tells_tools(environment, source)
            """Whether it tells the model of functions to call, in the notation that is parsed."""
            self._render(_PROBE, add_generation_prompt=True)
        except Exception as error:
            raise ModelLoadError(
                f"the chat template does not render: {_first_line(error)}"
            ) from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The text of a conversation; raises `RequestError` if the template refuses it."""
        try:
            return self._render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        except TemplateError as error:
            raise RequestError(
                f"the chat template refuses these messages: {_first_line(error)}", param="messages"
            ) from None
        except Exception:
            raise RequestError(
                "the chat template cannot render these messages", param="messages"
            ) from None

    def _render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
    ) -> str:
        return self._template.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=list(tools) if tools else None,
            documents=None,
            **self._special_tokens,
        )


def join_text_parts(message: Message) -> Message:
    """The message with a list of text parts as its content turned into one string."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        raise RequestError("content parts must be of type text", param="messages")
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _tells_tools(environment: Environment, source: str) -> bool:
    return OPEN in source and "tools" in meta.find_undeclared_variables(environment.parse(source))


class _Generation(Extension):
    """`{% generation %}` marks what training learns from; for serving it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002
    return datetime.now().strftime(format)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
