"""Length-prefixed msgpack frames over a local stream socket: for the engine's loop, and asyncio."""

import asyncio
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 2**20
MAX_UNSENT_BYTES = 64 * 2**20
_RECEIVE_BYTES = _SEND_BYTES = 256 * 2**10

T = TypeVar("T")


def pack_frame(message: object) -> bytearray:
    """Encode one message with its length, a 32-bit little-endian integer, before it."""
    frame = bytearray(256)
    msgspec.msgpack.Encoder().encode_into(message, frame, HEADER_BYTES)
    size = len(frame) - HEADER_BYTES
    _check_size(size)
    frame[:HEADER_BYTES] = size.to_bytes(HEADER_BYTES, "little")
    return frame


class FrameBuffer:
    """Cuts a stream of bytes, in pieces of any length, into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in `data` and give every frame that is whole by now, without its length.

        Raises ValueError as soon as a length above MAX_FRAME_BYTES is announced.
        """
        self._bytes += data
        while len(self._bytes) >= HEADER_BYTES:
            size = int.from_bytes(self._bytes[:HEADER_BYTES], "little")
            _check_size(size)
            end = HEADER_BYTES + size
            if len(self._bytes) < end:
                return
            frame = bytes(self._bytes[HEADER_BYTES:end])
            del self._bytes[:end]
            yield frame


class Channel(Generic[T]):
    """The engine's end of a socket whose peer sends messages of type `T`.

    Sending does not wait for a peer that reads late: what the socket does not take is kept, and
    goes out with the next `send` or while `receive` waits. Only a peer that is MAX_UNSENT_BYTES
    behind is waited for.
    """

    def __init__(self, sock: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._socket = sock
        self._decoder = decoder
        self._buffer = FrameBuffer()
        self._unsent = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, message: object) -> None:
        """Send one message, now or later; raises OSError when the peer is gone."""
        self._unsent += pack_frame(message)
        self._send_unsent()
        while len(self._unsent) > MAX_UNSENT_BYTES:
            select.select((), (self._socket,), ())
            self._send_unsent()

    def receive(self, timeout: float | None) -> list[T]:
        """Messages that have arrived; waits up to `timeout` seconds (None: for ever) for bytes.

        May return none, where the time is up or a frame is not yet whole. Raises EOFError when
        the peer is gone.
        """
        if not self._wait_for_bytes(timeout):
            return []
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise EOFError("the peer closed the socket")
        return [self._decoder.decode(frame) for frame in self._buffer.feed(data)]

    def _wait_for_bytes(self, timeout: float | None) -> bool:
        """Whether there is something to receive; sends what is unsent meanwhile."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            self._poll.modify(self._socket, wanted)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1e3
            ready = self._poll.poll(left)
            if not ready:
                return False
            if ready[0][1] & ~select.POLLOUT:
                return True
            self._send_unsent()

    def _send_unsent(self) -> None:
        """As much as the socket takes without waiting."""
        with suppress(BlockingIOError):
            while self._unsent:
                piece = bytes(self._unsent[:_SEND_BYTES])
                del self._unsent[: self._socket.send(piece, socket.MSG_DONTWAIT)]


class FrameProtocol(asyncio.Protocol):
    """The asyncio end: calls `on_frame` for each frame, `on_lost` once when the peer is gone."""

    def __init__(self, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._buffer = FrameBuffer()

    def data_received(self, data: bytes) -> None:
        for frame in self._buffer.feed(data):
            self._on_frame(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


def _check_size(size: int) -> None:
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes exceeds the bound of {MAX_FRAME_BYTES}")
