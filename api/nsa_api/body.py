"""Reads a request's body before the app sees it: JSON only, bounded, and not at a crawl."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsa_api.errors import ApiError
from nsa_api.protocol import SECONDS_TO_CATCH_UP
from nsa_api.settings import ApiSettings, MiB

MIN_BODY_RATE = 64 << 10
"""Bytes per second below which a body is too slow."""
UPLOAD_PATH = "/v1/files"
_READ_BEYOND = 16 * MiB


class BodyLimits:
    """Answers 413, 415 and 408 itself; the app receives the whole body in one message."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self._max_bytes = settings.max_body_bytes
        self._timeout = settings.read_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _announces_body(scope) or _is_upload(scope):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if scope["path"] != UPLOAD_PATH:  # no other method takes a form: a 405 says more
                _check_media_type(scope)
        except ApiError as refusal:
            await refusal.response()(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away.

        A little more than the limit is read and thrown away: a close with unread data resets the
        connection, and the client might never see why.
        """
        read_at_most = 0 if _header(scope, b"expect") else self._max_bytes + _READ_BEYOND
        if int(_header(scope, b"content-length") or 0) > max(read_at_most, self._max_bytes):
            raise self._too_large()
        started = asyncio.get_running_loop().time()
        body, received = bytearray(), 0
        while True:
            deadline = started + self._timeout + received / MIN_BODY_RATE
            message = await _received_by(deadline, receive)
            if message is None:
                raise _closing(408, "The body did not arrive in time", "body_timeout")
            if message["type"] == "http.disconnect":
                return None
            piece, more = message.get("body", b""), message.get("more_body", False)
            received += len(piece)
            if received <= self._max_bytes:
                body += piece
            elif received > read_at_most or not more:
                raise self._too_large()
            if not more:
                return bytes(body)

    def _too_large(self) -> ApiError:
        text = f"The body is larger than {self._max_bytes} bytes"
        return _closing(413, text, "body_too_large")


async def _received_by(deadline: float, receive: Receive) -> Message | None:
    """The next message; None if it is late."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            return await receive()
    with suppress(TimeoutError):
        async with asyncio.timeout(SECONDS_TO_CATCH_UP):
            return await receive()
    return None


def _closing(status: int, message: str, code: str) -> ApiError:
    return ApiError(status, message, code=code, headers={"Connection": "close"})


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


def _announces_body(scope: Scope) -> bool:
    length = _header(scope, b"content-length")
    return bool(_header(scope, b"transfer-encoding")) or length not in (b"", b"0")


def _is_upload(scope: Scope) -> bool:
    """Whether the route reads the body itself, piece by piece and within limits of its own."""
    return (scope["method"], scope["path"]) == ("POST", UPLOAD_PATH)


def _check_media_type(scope: Scope) -> None:
    media_type = _header(scope, b"content-type").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise _closing(415, "The content type must be application/json", "bad_content_type")
    if _header(scope, b"content-encoding").strip().lower() not in (b"", b"identity"):
        raise _closing(415, "Encoded bodies are not accepted", "bad_content_encoding")


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
