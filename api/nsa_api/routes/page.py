"""The built-in page at /. It is public and holds no secret; what it shows needs the key."""

import hashlib

from fastapi import APIRouter, Request
from starlette.responses import Response

from nsa_api.page import FILES, content

_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def _page(request: Request) -> Response:
    path = request.scope["path"]
    body = content(path)
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "ETag": tag,
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=FILES[path][1])


router = APIRouter()
for _path in FILES:
    router.add_api_route(_path, _page, methods=["GET", "HEAD"], include_in_schema=False)
