"""Deny by default: one layer over the whole app asks for the key, whatever the route."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from nsa_api.errors import ApiError
from nsa_api.page import FILES

PUBLIC_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping", *FILES})


class Authentication:
    """Lets a request through if its path is public or it bears a known key.

    The prefix-cache salt of the key is left in `scope["state"]["salt"]`: requests of different
    keys never share cached pages, and a body cannot choose another key's salt.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str] = ()) -> None:
        self.app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS and self._digests:
            digest = self._known_digest(scope)
            if digest is None:
                refusal = ApiError(
                    401,
                    "A valid API key is required as a bearer token",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal.response()(scope, receive, send)
                return
            salt = hashlib.sha256(b"prefix-cache" + digest).digest()
            scope.setdefault("state", {})["salt"] = salt
        await self.app(scope, receive, send)

    def _known_digest(self, scope: Scope) -> bytes | None:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        given = hashlib.sha256(key.strip()).digest()
        # Every digest is compared, so that time tells nothing about which key was close.
        matches = [known for known in self._digests if hmac.compare_digest(known, given)]
        return matches[0] if matches and scheme.lower() == b"bearer" else None
