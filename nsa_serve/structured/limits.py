"""Bounds on what may be asked of a grammar, checked before anything is compiled."""

from collections.abc import Iterator
from typing import Any

from nsa_serve.errors import RequestError
from nsa_serve.params import StructuredOutputs

MAX_SOURCE_BYTES = 64 << 10
MAX_DEPTH = 64
"""Lists and objects within each other, in a schema."""
MAX_ENUM_VALUES = 2000
"""Values of all `enum`s of a schema together, or alternatives of a choice."""


def check_limits(spec: StructuredOutputs, schema: Any) -> None:
    """Raise `RequestError` if the source is too large; `schema` is the parsed `spec.schema`."""
    texts = [spec.schema or "", spec.regex or "", spec.grammar or "", *(spec.choice or ())]
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_SOURCE_BYTES:
        raise _too_much(spec, f"{size} bytes are more than {MAX_SOURCE_BYTES}")
    num_values = len(spec.choice or ())
    for depth, key, value in _walk(schema):
        if depth > MAX_DEPTH:
            raise _too_much(spec, f"a schema may be nested {MAX_DEPTH} deep")
        if key == "enum" and isinstance(value, list):
            num_values += len(value)
    if num_values > MAX_ENUM_VALUES:
        raise _too_much(spec, f"{num_values} values are more than {MAX_ENUM_VALUES}")


def _walk(value: Any) -> Iterator[tuple[int, Any, Any]]:
    """(depth, key, value) of everything within a JSON value, without recursion."""
    waiting: list[tuple[int, Any, Any]] = [(1, None, value)]
    while waiting:
        depth, key, value = waiting.pop()
        yield depth, key, value
        if isinstance(value, dict):
            waiting += [(depth + 1, k, v) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(depth + 1, None, v) for v in value]


def _too_much(spec: StructuredOutputs, text: str) -> RequestError:
    return RequestError(f"{spec.field}: {text}", param=spec.field)
