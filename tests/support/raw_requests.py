"""Requests as bytes: good ones with some fields over them, and others."""

from typing import Any

import msgspec

from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body

KEY = b"Authorization: Bearer key\r\n"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=-x-\r\n"


def post(path: str, body: bytes, headers: bytes = KEY + JSON) -> bytes:
    """A whole request."""
    length = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
    return b"POST " + path.encode() + b" HTTP/1.1\r\n" + HOST + headers + length + b"\r\n" + body


def get(path: str, headers: bytes = KEY, method: str = "GET") -> bytes:
    """A request without a body."""
    head = f"{method} {path} HTTP/1.1\r\n".encode()
    return head + HOST + headers + b"Connection: close\r\n\r\n"


def completions(*fields: dict[str, Any]) -> list[bytes]:
    """Good requests for completions, each with some fields over it."""
    return [post(COMPLETIONS, msgspec.json.encode(completion_body(**own))) for own in fields]


def chats(*fields: dict[str, Any]) -> list[bytes]:
    """Good requests for chats, each with some fields over it."""
    return [post(CHAT, msgspec.json.encode(chat_body(**own))) for own in fields]


def both(*fields: dict[str, Any]) -> list[bytes]:
    """Both."""
    return completions(*fields) + chats(*fields)


def raw(*bodies: bytes) -> list[bytes]:
    """Bodies as they are, to both endpoints."""
    return [post(path, body) for path in (COMPLETIONS, CHAT) for body in bodies]


def every(name: str, *values: Any) -> list[dict[str, Any]]:
    """One field with each of these values."""
    return [{name: value} for value in values]


def messages(*contents: Any) -> list[dict[str, Any]]:
    """Chats of one user's message with each of these contents."""
    return [{"messages": [{"role": "user", "content": content}]} for content in contents]


def part(kind: str) -> list[dict[str, Any]]:
    """Content of one part that is no text."""
    return [{"type": kind, kind: {"url": "x"}}]


def tool(name: Any = "f", parameters: Any = None, **fields: Any) -> dict[str, Any]:
    """A function that may be called."""
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


def structured(**fields: Any) -> dict[str, Any]:
    """What an answer must match."""
    return {"structured_outputs": fields}


def without(*names: str) -> list[bytes]:
    """Completions, then chats, each without one of its fields."""
    made = []
    for path, body in ((COMPLETIONS, completion_body()), (CHAT, chat_body())):
        for name in names:
            if name in body:
                rest = {key: value for key, value in body.items() if key != name}
                made.append(post(path, msgspec.json.encode(rest)))
    return made


def upload(content: bytes, purpose: str = "batch", name: str = "file") -> bytes:
    """A form with a file."""
    parts = [
        b'Content-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode(),
        b'Content-Disposition: form-data; name="%s"; filename="a"\r\n\r\n' % name.encode()
        + content,
    ]
    body = b"".join(b"---x-\r\n" + piece + b"\r\n" for piece in parts) + b"---x---\r\n"
    return post("/v1/files", body, KEY + FORM)


def nested(depth: int) -> dict[str, Any]:
    """A schema of arrays in arrays."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema
