"""The lines of a batch file, one at a time and each of bounded length."""

import codecs
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Protocol, Self

from nsa_serve.errors import BatchError

MAX_LINE_BYTES = 8 << 20
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank."""

    number: int
    """The first is 1."""
    data: bytes
    """Without its line end; cut where it is too long."""
    too_long: bool
    num_bytes: int
    """What it takes in the file, with its end and blank lines before it."""


class InputFile:
    """A file of lines, or a pipe, that is read once. Raises `BatchError` if it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = os.stat(path)
            if S_ISDIR(status.st_mode):
                raise BatchError(f"{path} is a folder, not a file of requests")
            if S_ISREG(status.st_mode) and not status.st_size:
                raise BatchError(f"{path} is empty")
            is_plain = S_ISREG(status.st_mode)
            self._file: _Readable = path.open("rb") if is_plain else _Pipe(path)
        except (OSError, ValueError) as error:
            raise BatchError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        self.num_bytes = status.st_size if is_plain else None
        """None of a pipe."""
        self.modified = int(status.st_mtime)
        """Seconds since the epoch."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def must_wait(self) -> bool:
        """Whether nothing can be read before somebody has written more."""
        return isinstance(self._file, _Pipe) and self._file.must_wait

    def lines(self) -> Iterator[Line]:
        """Every line that is not blank. A byte-order mark and CR before LF are no part of one."""
        number = num_bytes = 0
        while data := self._read(MAX_LINE_BYTES + 2):
            number += 1
            if number == 1:
                if data.startswith(_WIDE_MARKS):
                    raise BatchError(f"{self.path} is UTF-16; batch files are UTF-8")
                num_bytes = len(data) - len(data.removeprefix(codecs.BOM_UTF8))
                data = data.removeprefix(codecs.BOM_UTF8)
            num_bytes += len(data)
            content = data.removesuffix(b"\n").removesuffix(b"\r")
            if not data.endswith(b"\n"):
                num_bytes += self._skip_rest()
            if content.strip():
                too_long = len(content) > MAX_LINE_BYTES
                yield Line(number, content[:MAX_LINE_BYTES], too_long, num_bytes)
                num_bytes = 0

    def _skip_rest(self) -> int:
        """Read on to the line's end; how much that was."""
        skipped = 0
        while piece := self._read(1 << 16):
            skipped += len(piece)
            if piece.endswith(b"\n"):
                break
        return skipped

    def _read(self, limit: int) -> bytes:
        try:
            return self._file.readline(limit)
        except OSError as error:
            raise BatchError(f"{self.path}: {error.strerror}") from None


class _Readable(Protocol):
    def readline(self, limit: int, /) -> bytes: ...

    def close(self) -> None: ...


class _Pipe:
    """Lines of something that others write to while it is read."""

    _PIECE = 1 << 16

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = bytearray()
        self._ended = False

    @property
    def must_wait(self) -> bool:
        """Whether a read would wait for the writer."""
        if self._ended or b"\n" in self._buffer:
            return False
        return not select.select((self._fd,), (), (), 0)[0]

    def readline(self, limit: int, /) -> bytes:
        """Up to a line's end, the limit or the end of all; waits for it."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched) + 1) == 0:
            searched = len(self._buffer)
            if self._ended or searched >= limit:
                end = searched
                break
            piece = os.read(self._fd, self._PIECE)
            self._buffer += piece
            self._ended = not piece
        line = bytes(self._buffer[: min(end, limit)])
        del self._buffer[: len(line)]
        return line

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)
