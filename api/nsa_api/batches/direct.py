"""The routes without HTTP: the same bodies in, the same bodies out."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Message

from nsa_api.errors import ApiError, to_api_error
from nsa_api.routes.chat import create_chat_completion
from nsa_api.routes.completions import create_completion
from nsa_api.schemas import ChatCompletionRequest, CompletionRequest
from nsa_api.state import ServerState
from nsa_serve.batch.requests import BatchRequest
from nsa_serve.batch.results import Answer
from nsa_serve.errors import QueueFullError

logger = logging.getLogger(__name__)

Route = Callable[[Any, Request], Awaitable[Response]]
_ROUTES: dict[str, tuple[type[BaseModel], Route]] = {
    "/v1/completions": (CompletionRequest, create_completion),
    "/v1/chat/completions": (ChatCompletionRequest, create_chat_completion),
}


class DirectApi:
    """Calls the routes of an app whose engine runs; `salt` is that of the key that asks.

    `priority` stands in the place of what bodies say.
    """

    def __init__(self, app: FastAPI, *, salt: bytes = b"", priority: int | None = None) -> None:
        self.state: ServerState = app.state.server
        self._app, self._salt, self._priority = app, salt, priority

    async def answer(self, request: BatchRequest) -> Answer:
        """Status and body, as a client would get them."""
        try:
            response = await self._respond(request)
        except Exception as error:
            refusal = to_api_error(error)
            if refusal.code == "internal_error":
                logger.exception("a request of a batch failed unexpectedly")
            retry_after = error.retry_after if isinstance(error, QueueFullError) else 0.0
            return Answer(refusal.status_code, refusal.body, retry_after)
        return Answer(response.status_code, bytes(response.body))

    async def _respond(self, request: BatchRequest) -> Response:
        model, route = _ROUTES[request.url]
        try:
            body = model.model_validate(self._settled(request))
        except ValidationError as error:
            found = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
            raise RequestValidationError(found) from None
        if getattr(body, "stream", None):
            text = "stream is not supported in a batch"
            raise ApiError(400, text, code="unsupported_parameter", param="stream")
        return await route(body, self._request(request.url))

    def _settled(self, request: BatchRequest) -> dict[str, Any]:
        """The body, with a seed of its own if it has none, so that it has one answer only."""
        body = dict(request.body)
        if body.get("seed") is None:
            digest = hashlib.sha256(b"seed/" + request.custom_id.encode()).digest()
            body["seed"] = int.from_bytes(digest[:7], "little")
        if self._priority is not None:
            body["priority"] = self._priority
        return body

    def _request(self, url: str) -> Request:
        """A request whose client never goes away: who leaves cancels the call."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": url,
            "headers": [],
            "query_string": b"",
            "app": self._app,
            "state": {"salt": self._salt, "may_wait": True},
        }
        return Request(scope, _nothing_more)


async def _nothing_more() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")
