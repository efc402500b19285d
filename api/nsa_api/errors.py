"""One error body for everything, and the one table from exceptions to it."""

import logging
import math
from collections.abc import Awaitable, Mapping, Sequence

import msgspec
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsa_serve.errors import (
    BatchError,
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    GenerationError,
    NsaServeError,
    QueueFullError,
    RequestError,
)

logger = logging.getLogger(__name__)

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    499: "client_closed_request",
}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_MAX_MESSAGE = 1000


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong; `param` names the field at fault, `code` is stable for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An answer other than success, raised from anywhere below the app."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.param = param

    @property
    def body(self) -> bytes:
        """The JSON body; long messages, which quote the client, are cut."""
        default = "invalid_request_error" if self.status_code < 500 else "server_error"
        detail = ErrorDetail(
            message=self.detail[:_MAX_MESSAGE],
            type=_TYPES.get(self.status_code, default),
            param=self.param,
            code=self.code,
        )
        return msgspec.json.encode(ErrorResponse(detail))

    def response(self) -> Response:
        """The whole HTTP answer."""
        return Response(self.body, self.status_code, self.headers, media_type="application/json")


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A 400 that names the field at fault."""
    return ApiError(400, message, code="invalid_value", param=param)


def unavailable(message: str, *, code: str, retry_after: int = 5) -> ApiError:
    """A 503 that says when to come back."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after)})


def to_api_error(error: Exception) -> ApiError:
    """What a client is told about `error`; a fixed text for whatever is not its fault."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(400, str(error), code="context_length_exceeded", param=error.param)
        case QueueFullError(retry_after=seconds):
            return ApiError(429, str(error), code="queue_full", headers=_retry_after(seconds))
        case RequestError():
            return bad_request(str(error), error.param)
        case GenerationError():
            return ApiError(500, str(error), code="generation_failed")
        case DeadlineError():
            # Whoever tries again would do so for nothing, and OpenAI's clients would.
            no_retry = {"X-Should-Retry": "false"}
            return ApiError(504, str(error), code="deadline_exceeded", headers=no_retry)
        case BatchError():
            return ApiError(507, "The server cannot keep this now", code="storage_failed")
        case EngineDeadError():
            return unavailable("The engine is not running", code="engine_dead")
        case RequestValidationError():
            return _from_validation(error)
        case StarletteHTTPException(status_code=status, detail=detail, headers=headers):
            return ApiError(status, str(detail), code=_CODES.get(status), headers=headers)
        case _:
            return ApiError(500, "Internal server error", code="internal_error")


def _retry_after(seconds: float) -> dict[str, str]:
    """In whole seconds, as HTTP has it, and as OpenAI's clients prefer it."""
    return {
        "Retry-After": str(math.ceil(seconds)),
        "Retry-After-Ms": str(math.ceil(1000 * seconds)),
    }


def _from_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    if not path:
        return ApiError(400, "The body must be a JSON object", code="invalid_json")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{'.'.join(path)}: {first['msg']}", code=code, param=path[0])


def install_error_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Give every exception that leaves a route the one error body; `routes` are all there are."""

    async def answer(request: Request, error: Exception) -> Response:
        refusal = to_api_error(error)
        if refusal.status_code == 405:
            refusal.headers = {"Allow": ", ".join(_allowed_methods(request, routes))}
        return refusal.response()

    for kind in (StarletteHTTPException, RequestValidationError, NsaServeError):
        app.add_exception_handler(kind, answer)


def _allowed_methods(request: Request, routes: Sequence[BaseRoute]) -> list[str]:
    """Of all routes at this address; Starlette names those of the first alone."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


class UnexpectedErrors:
    """Innermost layer: an exception that nothing expected is logged and answered with a 500.

    Starlette's own would answer outside of all layers, without the request's id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if started:
                raise
            logger.exception("a request failed unexpectedly")
            await to_api_error(error).response()(scope, receive, send)
