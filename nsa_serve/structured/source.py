"""From what a request asks for to the text of a grammar."""

import json
import re
from typing import TYPE_CHECKING, Any

import llguidance
import msgspec
from llguidance.gbnf_to_lark import any_to_lark

from nsa_serve.errors import RequestError
from nsa_serve.params import StructuredOutputs
from nsa_serve.structured.limits import check_schema, check_size

if TYPE_CHECKING:  # it is nowhere else
    from llguidance._lib import JsonCompileOptions

WHITESPACE = r"( |\n[ ]{0,16})?"
"""Between the parts of a JSON text: bounded, for small models fall into writing spaces for ever."""

_LARK = re.compile(r"^start\s*:(?!:=)", re.MULTILINE)
_ANY_OBJECT = '{"type": "object"}'
_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": WHITESPACE,
    "lenient": False,
    "coerce_one_of": True,
}


def grammar_source(spec: StructuredOutputs) -> str:
    """The grammar, as llguidance reads it; raises `RequestError` if it is too large or no grammar.

    That it is well formed turns out when it is compiled.
    """
    check_size(spec)
    schema = None if spec.schema is None else _parsed(spec, spec.schema)
    check_schema(schema, spec.field)
    matcher = llguidance.LLMatcher
    if spec.json_object:
        return matcher.grammar_from_json_schema(_ANY_OBJECT, overrides=_JSON_OPTIONS)
    if spec.json is not None:
        return matcher.grammar_from_json_schema(_without_options(schema), overrides=_JSON_OPTIONS)
    if spec.regex is not None:
        # \d and \w are ASCII: nobody who asks for digits expects those of every script.
        return matcher.grammar_from_regex(llguidance.regex_to_lark(spec.regex, "dw"))
    if spec.choice is not None:
        alternatives = " | ".join(json.dumps(text) for text in spec.choice)
        return matcher.grammar_from_lark(f"start: {alternatives}")
    assert spec.grammar is not None, "one of them is given"
    if _LARK.search(spec.grammar):
        return matcher.grammar_from_lark(spec.grammar)
    try:
        return matcher.grammar_from_lark(any_to_lark(spec.grammar))
    except Exception as error:  # the converter raises nothing more precise
        raise invalid(spec, error) from None


def invalid(spec: StructuredOutputs, reason: object) -> RequestError:
    """What is said of a grammar that does not compile."""
    text = " ".join(str(reason).split())
    return RequestError(f"{spec.field} cannot be compiled: {text[:300]}", param=spec.field)


def json_rule(schema: dict[str, Any] | None) -> str:
    """A JSON schema as a part of a Lark rule; None stands for any object."""
    options = {"x-guidance": _JSON_OPTIONS}
    return "%json " + json.dumps({**_without(schema or {"type": "object"}), **options})


def _parsed(spec: StructuredOutputs, text: str) -> Any:
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise invalid(spec, error) from None
    if not isinstance(schema, dict | bool):
        raise invalid(spec, "a JSON schema is an object")
    return schema


def _without_options(schema: Any) -> str:
    return json.dumps(_without(schema) if isinstance(schema, dict) else schema)


def _without(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the options by which it could change how it is read."""
    return {key: value for key, value in schema.items() if key != "x-guidance"}
