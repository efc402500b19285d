"""The OpenAPI document: FastAPI knows the bodies of requests, msgspec those of answers."""

from typing import Any

import msgspec
from fastapi import FastAPI

from nsa_api import responses
from nsa_api.errors import ErrorResponse

_REF = "#/components/schemas/{name}"
_ANSWERS = (
    ErrorResponse,
    responses.Completion,
    responses.ChatCompletion,
    responses.ChatCompletionChunk,
    responses.ModelCard,
    responses.ModelList,
    responses.TokenizeResponse,
    responses.DetokenizeResponse,
)

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "The request is at fault",
        "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorResponse")}}},
    },
    "503": {
        "description": "Not serving at the moment",
        "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorResponse")}}},
    },
}


def documented(
    answer: type[msgspec.Struct], *, streamed: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with this struct."""
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": _REF.format(name=answer.__name__)}}
    }
    if streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {200: {"description": "Success", "content": content}, **ERRORS}


def install_openapi(app: FastAPI) -> None:
    """Add the answers' schemas to the document that FastAPI makes."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            _, components = msgspec.json.schema_components(_ANSWERS, ref_template=_REF)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(components)
        return make()

    app.openapi = openapi  # type: ignore[method-assign]
