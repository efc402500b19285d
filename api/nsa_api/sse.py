"""Server-sent events: frames that are mostly encoded before the first token, and their response."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nsa_api.disconnect import ClientGone, until_disconnect
from nsa_api.errors import to_api_error
from nsa_api.responses import Usage

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
_NULL_USAGE = b',"usage":null}\n\n'
_END = b"}\n\n"
_LINE_ENDS = (
    ("\x85".encode(), b"\\u0085"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
"""What Python's `splitlines` takes for an end of line and JSON does not escape."""


def one_line(body: bytes) -> bytes:
    """The same JSON, in one line for readers that split decoded text, as httpx's do."""
    if not body.isascii():
        for raw, escaped in _LINE_ENDS:
            body = body.replace(raw, escaped)
    return body


class ChunkEncoder:
    """Encodes the chunks of one stream; what they have in common is encoded once."""

    def __init__(
        self, completion_id: str, kind: str, created: int, model: str, *, with_usage: bool
    ) -> None:
        common = {"id": completion_id, "object": kind, "created": created, "model": model}
        head = one_line(msgspec.json.encode(common))
        self._choices = b"data: " + head[:-1] + b',"choices":'
        self._end = _NULL_USAGE if with_usage else _END
        self._encode = msgspec.json.Encoder().encode

    def chunk(
        self,
        choices: Sequence[msgspec.Struct],
        usage: Usage | None = None,
        *,
        prompt_token_ids: list[int] | None = None,
    ) -> bytes:
        """One event. Every chunk has a usage field once the client asked for usage."""
        body = self._choices + one_line(self._encode(choices))
        if prompt_token_ids is not None:
            body += b',"prompt_token_ids":' + self._encode(prompt_token_ids)
        if usage is None:
            return body + self._end
        return body + b',"usage":' + self._encode(usage) + _END


class EventStream(Response):
    """Sends frames as they come, `[DONE]` last.

    An error before the first frame is raised and becomes a plain HTTP error; a later one becomes
    an event. A client that goes away cancels the frames' source.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer over ASGI."""
        try:
            await until_disconnect(receive, self._send_all(send))
        except ClientGone:
            return

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            first = await anext(frames, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send_frame(send, first)
            try:
                async for frame in frames:
                    await _send_frame(send, frame)
            except Exception as error:
                refusal = to_api_error(error)
                if refusal.status_code == 500:
                    logger.exception("a stream failed")
                await _send_frame(send, b"data: " + one_line(refusal.body) + b"\n\n")
        await send({"type": "http.response.body", "body": DONE, "more_body": False})


def _send_frame(send: Send, frame: bytes) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": frame, "more_body": True})
