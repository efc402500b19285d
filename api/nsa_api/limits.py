"""What a request may look like before anything reads it: its headers, host and id."""

import re
import uuid
from collections.abc import Awaitable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsa_api.errors import ApiError
from nsa_api.settings import ApiSettings
from nsa_serve import logs

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class HeadLimits:
    """Bounds the headers, checks Host on loopback binds and wherever hosts are named, and echoes
    or makes X-Request-Id.

    The Host check keeps web pages from reaching a local server by a name of their own
    (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self._max_bytes = settings.max_header_bytes
        self._max_count = settings.max_header_count
        check_host = settings.loopback or bool(settings.allowed_hosts)
        self._hosts = _LOOPBACK_HOSTS.union(settings.allowed_hosts) if check_host else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        logs.request_id.set(request_id)

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            return send(message)

        refusal = self._refusal(scope["headers"])
        app: ASGIApp = self.app if refusal is None else refusal.response()
        await app(scope, receive, send_with_id)

    def _refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> ApiError | None:
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self._max_count or size > self._max_bytes:
            return ApiError(
                431,
                "The request's headers are too large",
                code="headers_too_large",
                headers={"Connection": "close"},
            )
        if self._hosts is not None:
            hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
            match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
            if match is None or match[1].lower() not in self._hosts:
                return ApiError(400, "The Host header is not one of this server's", code="bad_host")
        return None


def _request_id(headers: Sequence[tuple[bytes, bytes]]) -> str:
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
