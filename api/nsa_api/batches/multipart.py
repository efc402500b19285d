"""multipart/form-data, read as it comes: a file is never held in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser

from nsa_api.errors import ApiError

_MAX_HEADERS = 8 << 10
_MAX_PREAMBLE = 64 << 10


@dataclass(frozen=True, slots=True)
class Part:
    """A field; its bytes must be read to the end before the next one."""

    name: str
    filename: str | None
    pieces: AsyncIterator[bytes]


def boundary_of(content_type: str) -> bytes:
    """What parts are divided by; raises a 415 where the type is another, or there is none."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        text = "The content type must be multipart/form-data with a boundary"
        raise ApiError(415, text, code="bad_content_type", headers={"Connection": "close"})
    if not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise _malformed("its boundary is not one")
    return boundary.encode()


async def parts(chunks: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Part]:
    """The fields of a form, in their order; raises a 400 where it is not one."""
    stream = _Stream(chunks)
    mark = b"\r\n--" + boundary
    await stream.until(mark, _MAX_PREAMBLE)
    while await stream.take(2) != b"--":
        stream.put_back(2)
        head = await stream.until(b"\r\n\r\n", _MAX_HEADERS)
        headers = Parser().parsestr(head.lstrip(b" \t").decode("utf-8", "replace")[2:])
        name = headers.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise _malformed("a part has no name")
        part = Part(name, headers.get_filename(), stream.pieces_until(mark))
        yield part
        async for _ in part.pieces:
            pass


class _Stream:
    """Bytes that can be searched. It starts with a line's end, so the first mark is like others."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray(b"\r\n")
        self._last = b""

    async def until(self, mark: bytes, limit: int) -> bytes:
        """What comes before `mark`, which is passed too; at most `limit` bytes."""
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > limit:
                raise _malformed("its boundary or the head of a part is missing")
            await self._more()
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return found

    async def pieces_until(self, mark: bytes) -> AsyncIterator[bytes]:
        """What comes before `mark`, piece by piece."""
        while (end := self._buffer.find(mark)) < 0:
            keep = len(mark) - 1
            if len(self._buffer) > keep:
                piece = bytes(self._buffer[:-keep])
                del self._buffer[:-keep]
                yield piece
            await self._more()
        piece = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        yield piece

    async def take(self, count: int) -> bytes:
        """The next bytes."""
        while len(self._buffer) < count:
            await self._more()
        self._last = bytes(self._buffer[:count])
        del self._buffer[:count]
        return self._last

    def put_back(self, count: int) -> None:
        """Undo the last `take`."""
        self._buffer[:0] = self._last[-count:]

    async def _more(self) -> None:
        async for chunk in self._chunks:
            if chunk:
                self._buffer += chunk
                return
        raise _malformed("it ends too early")


def _malformed(why: str) -> ApiError:
    return ApiError(400, f"The body is not a good form: {why}", code="invalid_form")
