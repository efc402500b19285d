"""The lines of a batch file, one at a time and each of bounded length."""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Self

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
            self._file: IO[bytes] = path.open("rb")
        except (OSError, ValueError) as error:
            raise BatchError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        self.num_bytes = status.st_size if S_ISREG(status.st_mode) else None
        """None of a pipe."""
        self.modified = int(status.st_mtime)
        """Seconds since the epoch."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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
