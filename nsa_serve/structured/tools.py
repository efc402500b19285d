"""Grammars of answers that call functions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nsa_serve.structured.source import json_rule
from nsa_serve.text.tools import CLOSE, OPEN

MAX_CALLS = 16
"""Of one answer that is made of calls alone."""

Functions = Sequence[tuple[str, Mapping[str, Any] | None]]
"""Names, and schemas of the parameters: None takes any object."""


def calls_grammar(functions: Functions, *, parallel: bool) -> str:
    """One call or, if `parallel`, several; nothing else."""
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    return "\n".join([f"start: call{more}", f"call: {_quoted(OPEN)} body", *_bodies(functions)])


def text_and_calls_grammar(functions: Functions, *, parallel: bool) -> str:
    """Any text, in which a tag that opens begins a call."""
    start = "start: (opened body)* rest" if parallel else "start: rest | opened body"
    # Lazy: the text ends as soon as the tag is there.
    rules = [start, f"opened[lazy]: TEXT {_quoted(OPEN)}", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    return "\n".join([*rules, *_bodies(functions)])


def calls_or_json_grammar(
    functions: Functions, schema: Mapping[str, Any] | None, *, parallel: bool
) -> str:
    """Either calls, or an answer that matches a JSON schema."""
    first, *rules = calls_grammar(functions, parallel=parallel).split("\n")
    answer = json_rule(None if schema is None else dict(schema))
    return "\n".join([f"{first} | answer", f"answer: {answer}", *rules])


def _bodies(functions: Functions) -> list[str]:
    """Rules of what stands behind the tag that opens, the one that closes included."""
    rules = ["body: " + " | ".join(f"body_{i}" for i in range(len(functions)))]
    for i, (name, schema) in enumerate(functions):
        head = f'\n{{"name": {json.dumps(name)}, "arguments": '
        tail = f"}}\n{CLOSE}"
        rules.append(f"body_{i}: {_quoted(head)} arguments_{i} {_quoted(tail)}")
        rules.append(f"arguments_{i}: {json_rule(None if schema is None else dict(schema))}")
    return rules


def _quoted(text: str) -> str:
    return json.dumps(text)
