"""The OpenAPI document: FastAPI knows the bodies of requests, msgspec those of answers."""

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI

from nsa_api import responses
from nsa_api.auth import PUBLIC_PATHS
from nsa_api.batches.records import MAX_EXPIRY, MIN_EXPIRY, BatchRecord, FileRecord
from nsa_api.errors import ErrorResponse

_REF = "#/components/schemas/{name}"
_ANSWERS: tuple[type[msgspec.Struct], ...] = (
    ErrorResponse,
    responses.Completion,
    responses.ChatCompletion,
    responses.ChatCompletionChunk,
    responses.ModelCard,
    responses.ModelList,
    responses.TokenizeResponse,
    responses.DetokenizeResponse,
    responses.TokenizerInfo,
    responses.HealthStatus,
    responses.Version,
    responses.ServerLoad,
    FileRecord,
    BatchRecord,
    responses.FileList,
    responses.BatchList,
    responses.FileDeleted,
)
_HIDDEN = (("FileRecord", "owner"), ("BatchRecord", "owner"), ("BatchRecord", "output_seconds"))
"""Fields that lie on disk and are never told."""


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(name=ErrorResponse.__name__)}
    headers = {
        name: {"description": f"{unit} after which to try again", "schema": {"type": "integer"}}
        for name, unit in (("Retry-After", "Seconds"), ("Retry-After-Ms", "Milliseconds"))
    }
    return {
        "description": description,
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": _error("The request is at fault; 429: the queue is full"),
    "5XX": _error("The server is at fault; 503: not serving at the moment"),
}
"""What any route may answer."""

UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "minLength": 1},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_EXPIRY,
                            "maximum": MAX_EXPIRY,
                        },
                    },
                }
            }
        },
    }
}
"""What a form with a file looks like, which FastAPI does not read."""


def documented(
    answer: type[msgspec.Struct] | Sequence[type[msgspec.Struct]],
    *,
    chunk: type[msgspec.Struct] | None = None,
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with this struct, or with one of several.

    `chunk` is what its stream's events hold, if it can stream.
    """
    several = answer if isinstance(answer, Sequence) else (answer,)
    schemas = [{"$ref": _REF.format(name=struct.__name__)} for struct in several]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if chunk is not None:
        content["text/event-stream"] = {"schema": _event(chunk, "A chunk", last="[DONE]")}
    return {200: {"description": "Success", "content": content}, **ERRORS}


def documented_events(
    content: type[msgspec.Struct], description: str
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with events, whose data is this struct as JSON."""
    schema = {"text/event-stream": {"schema": _event(content, description)}}
    return {200: {"description": description, "content": schema}, **ERRORS}


def _event(
    content: type[msgspec.Struct], description: str, last: str | None = None
) -> dict[str, Any]:
    """One event of a stream, as OpenAPI describes them; `last` is that without content."""
    data: dict[str, Any] = {
        "type": "string",
        "description": description,
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(name=content.__name__)},
    }
    if last is not None:
        data = {"anyOf": [data, {"const": last}]}
    return {"type": "object", "properties": {"data": data}}


def documented_as(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route whose answer is no JSON."""
    binary = {"format": "binary"} if media_type == "application/octet-stream" else {}
    content = {media_type: {"schema": {"type": "string", **binary}}}
    return {200: {"description": description, "content": content}, **ERRORS}


def paged(max_limit: int, **others: dict[str, Any]) -> dict[str, Any]:
    """The query of a list that comes in pages; `others` are schemas of further parameters."""
    schemas = {
        "limit": {"type": "integer", "minimum": 1, "maximum": max_limit},
        "after": {"type": "string", "description": "The last id of the page before"},
        "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
        **others,
    }
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in schemas.items()
        ]
    }


def install_openapi(
    app: FastAPI, answers: Sequence[type[msgspec.Struct]], *, with_keys: bool
) -> None:
    """Complete the document that FastAPI makes: schemas of all answers, and where a key is asked.

    `answers` are those of routes that define their own.
    """
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            _add_answers(document, (*_ANSWERS, *answers))
            if with_keys:
                _ask_for_keys(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_answers(document: dict[str, Any], answers: Sequence[type[msgspec.Struct]]) -> None:
    _, components = msgspec.json.schema_components(answers, ref_template=_REF)
    for name, field in _HIDDEN:
        del components[name]["properties"][field]
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    assert not schemas.keys() & components.keys()
    schemas.update(components)


def _ask_for_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path not in PUBLIC_PATHS:
            for operation in operations.values():
                operation["security"] = [{"key": []}]
