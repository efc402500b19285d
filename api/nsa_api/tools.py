"""Functions that a chat offers: which may or must be called, and what holds the answer to that."""

from collections.abc import Sequence
from typing import Any

import msgspec

from nsa_api.errors import bad_request
from nsa_api.schemas import ChatCompletionRequest, NamedTool, Tool
from nsa_serve.params import StructuredOutputs
from nsa_serve.structured.limits import check_schema
from nsa_serve.structured.tools import (
    Functions,
    calls_grammar,
    calls_or_json_grammar,
    text_and_calls_grammar,
)


class Offer(msgspec.Struct, frozen=True):
    """What a request says of functions, put together."""

    tools: Sequence[Tool]
    """Those that the model is told of; empty: it calls none."""
    structured: StructuredOutputs | None
    """What its answer must match."""

    @property
    def names(self) -> frozenset[str]:
        """Of the functions."""
        return frozenset(tool.function.name for tool in self.tools)

    @property
    def for_template(self) -> list[dict[str, Any]] | None:
        """What a chat template sees."""
        return [tool.for_template() for tool in self.tools] or None


def offer(body: ChatCompletionRequest, structured: StructuredOutputs | None) -> Offer:
    """The functions of a request, beside what else its answer must match; raises a 400 where they
    contradict each other."""
    tools, choice = body.tools or [], body.tool_choice
    _check_names(tools)
    if not tools and choice not in (None, "none", "auto"):
        raise bad_request("tool_choice needs tools", "tool_choice")
    if not tools or choice == "none":
        return Offer([], structured)
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise bad_request("tool_choice names a function that tools do not have", "tool_choice")
    parallel = body.parallel_tool_calls is not False
    functions = [(tool.function.name, tool.function.parameters) for tool in tools]
    if choice in (None, "auto"):
        return Offer(tools, _may_call(functions, tools, structured, parallel=parallel))
    if structured is not None:
        text = f"{structured.field} cannot go with a tool_choice that forces a call"
        raise bad_request(text, structured.field)
    parallel = parallel and choice == "required"
    return Offer(tools, _held_to(calls_grammar(functions, parallel=parallel)))


def _may_call(
    functions: Functions,
    tools: Sequence[Tool],
    structured: StructuredOutputs | None,
    *,
    parallel: bool,
) -> StructuredOutputs | None:
    if structured is not None:
        if structured.schema is None and not structured.json_object:
            text = f"{structured.field}: beside tools the answer can only be held to JSON"
            raise bad_request(text, structured.field)
        schema = None if structured.schema is None else _schema(structured)
        return _held_to(calls_or_json_grammar(functions, schema, parallel=parallel))
    if parallel and not any(tool.function.strict for tool in tools):
        return None  # text as it comes, without the cost of a grammar
    loose = [
        (name, schema if tool.function.strict else None)
        for (name, schema), tool in zip(functions, tools, strict=True)
    ]
    return _held_to(text_and_calls_grammar(loose, parallel=parallel))


def _held_to(grammar: str) -> StructuredOutputs:
    return StructuredOutputs(grammar=grammar, field="tools")


def _schema(structured: StructuredOutputs) -> dict[str, Any]:
    schema = msgspec.json.decode(structured.schema or "{}")
    if not isinstance(schema, dict):
        raise bad_request(f"{structured.field}: a JSON schema is an object", structured.field)
    return schema


def _check_names(tools: Sequence[Tool]) -> None:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise bad_request("tools: two functions have one name", "tools")
    for tool in tools:
        schema = tool.function.parameters or {}
        check_schema(schema, "tools")
        if schema.get("type", "object") != "object":
            text = f"tools: the parameters of {tool.function.name} must be of type object"
            raise bad_request(text, "tools")
