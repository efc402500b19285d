"""What a request wants its answer to look like, from whichever field it says so in."""

from collections.abc import Iterator
from typing import Any

from nsa_api.errors import bad_request
from nsa_api.schemas import ResponseFormat, SamplingFields, StructuredOutputsBody
from nsa_serve.params import StructuredOutputs


def structured_outputs(body: SamplingFields) -> StructuredOutputs | None:
    """What the answer must match, if anything; raises a 400 if two fields say so."""
    asked = list(_asked(body))
    if len(asked) > 1:
        names = " and ".join(spec.field for spec in asked)
        raise bad_request(f"{names} exclude each other", asked[1].field)
    return asked[0] if asked else None


def _asked(body: SamplingFields) -> Iterator[StructuredOutputs]:
    if body.response_format is not None:
        yield from _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs)
    for kind in ("json", "regex", "choice", "grammar"):
        value: Any = getattr(body, f"guided_{kind}")
        if value is not None:
            value = tuple(value) if kind == "choice" else value
            yield StructuredOutputs(**{kind: value}, field=f"guided_{kind}")


def _of_response_format(wanted: ResponseFormat) -> Iterator[StructuredOutputs]:
    field = "response_format"
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise bad_request("response_format: json_schema is missing", field)
        schema = wanted.json_schema.schema_
        yield StructuredOutputs(json=schema, json_object=schema is None, field=field)
    elif wanted.type == "json_object":
        yield StructuredOutputs(json_object=True, field=field)


def _of_structured_outputs(wanted: StructuredOutputsBody) -> Iterator[StructuredOutputs]:
    fields = {
        "json": wanted.json_,
        "json_object": bool(wanted.json_object),
        "regex": wanted.regex,
        "choice": None if wanted.choice is None else tuple(wanted.choice),
        "grammar": wanted.grammar,
    }
    if any(value not in (None, False) for value in fields.values()):
        yield StructuredOutputs(**fields)  # type: ignore[arg-type]  # each has its field's type
    elif wanted.model_extra:
        names = ", ".join(sorted(wanted.model_extra))[:64]
        raise bad_request(f"structured_outputs: {names} is not supported", "structured_outputs")
