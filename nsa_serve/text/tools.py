"""Functions that an assistant may call, told to models whose chat template does not tell them.

The notation is the one that Hermes and Qwen models were trained on: a call is a JSON object of
name and arguments between the tags <tool_call> and </tool_call>, and its result comes back in the
user's turn between <tool_response> and </tool_response>.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"

Message = Mapping[str, Any]

_INTRODUCTION = (
    "You can call the functions below. Each line between the tags describes one, its parameters "
    "as a JSON schema:\n<tools>\n"
)
_INSTRUCTION = (
    "\n</tools>\nTo call a function, answer with its name and its arguments as one JSON object "
    f'between tags:\n{OPEN}\n{{"name": "the function", "arguments": {{"parameter": "value"}}}}\n'
    f"{CLOSE}"
)


def with_tools_told(messages: Sequence[Message], tools: Sequence[Any] | None) -> list[Message]:
    """The conversation in system, user and assistant turns alone: the functions at the end of the
    system message, calls and their results as text."""
    told = list(_without_tool_roles(messages))
    if not tools:
        return told
    section = _INTRODUCTION + "\n".join(map(_dumped, tools)) + _INSTRUCTION
    if told and told[0].get("role") == "system":
        first, *rest = told
        return [{**first, "content": f"{first['content']}\n\n{section}"}, *rest]
    return [{"role": "system", "content": section}, *told]


def call_text(name: str, arguments: Any) -> str:
    """A call as models write it. `arguments` that are a string are JSON already."""
    text = arguments if isinstance(arguments, str) else _dumped(arguments)
    return f'{OPEN}\n{{"name": {_dumped(name)}, "arguments": {text}}}\n{CLOSE}'


def _without_tool_roles(messages: Sequence[Message]) -> Iterator[Message]:
    results: list[str] = []
    for message in messages:
        if message.get("role") == "tool":
            results.append(f"<tool_response>\n{message.get('content')}\n</tool_response>")
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        yield _with_calls_as_text(message)
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _with_calls_as_text(message: Message) -> Message:
    try:
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        parts = [call_text(function["name"], function["arguments"]) for function in functions]
    except (KeyError, TypeError):  # in no format that we know: the template may know it
        return message
    if not parts:
        return message
    if message.get("content"):
        parts.insert(0, message["content"])
    return {**message, "content": "\n".join(parts), "tool_calls": None}


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
