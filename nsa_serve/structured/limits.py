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


def check_size(spec: StructuredOutputs) -> None:
    """Raise `RequestError` if the source is too large; in no time, whatever its size."""
    choice = spec.choice or ()
    if len(choice) > MAX_ENUM_VALUES:
        raise _too_much(spec, f"{len(choice)} alternatives are more than {MAX_ENUM_VALUES}")
    texts = [spec.schema or "", spec.regex or "", spec.grammar or "", *choice]
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_SOURCE_BYTES:
        raise _too_much(spec, f"{size} bytes are more than {MAX_SOURCE_BYTES}")


def check_schema(schema: Any, field: str) -> None:
    """Raise `RequestError` if a JSON schema is nested too deep or lists too much."""
    num_values = 0
    for depth, key, value in _walk(schema):
        if depth > MAX_DEPTH:
            text = f"{field}: a schema may be nested {MAX_DEPTH} deep"
            raise RequestError(text, param=field)
        if key == "enum" and isinstance(value, list):
            num_values += len(value)
    if num_values > MAX_ENUM_VALUES:
        text = f"{field}: {num_values} values are more than {MAX_ENUM_VALUES}"
        raise RequestError(text, param=field)


def is_deep(value: Any) -> bool:
    """Whether a JSON value is nested deeper than a schema may be."""
    return any(depth > MAX_DEPTH for depth, _, _ in _walk(value))


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
