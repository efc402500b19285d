"""The file of results: whole lines at every moment, however the writer ends.

A line is written by one call to the system. What a killed process, a crashed machine or a full
disk leaves of an unfinished line is cut, at once or by the next run.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Self

import msgspec

from nsa_serve.batch.requests import digest_of
from nsa_serve.batch.results import START
from nsa_serve.errors import BatchError

_PIECE = 1 << 20


class _Written(msgspec.Struct):
    """The parts of a result's line that a resumed run reads."""

    id: str
    custom_id: str | None


class OutputFile:
    """A file that only grows, by one writer. Raises `BatchError` if it cannot be had.

    A symbolic link, a device and a file that another run writes are refused; so is one that holds
    something, unless `resume` says to go on with it.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self._unsynced = False
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            if path.is_symlink():
                raise BatchError(f"{path} is a symbolic link; results go to a plain file only")
            if path.is_dir():
                raise BatchError(f"{path} is a folder; name a file in it")
            self._file = os.open(path, flags, 0o600)
        except (OSError, ValueError) as error:
            raise BatchError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        try:
            self._claim()
            self.written = self._recover(resume)
            """Digests of what it holds: `BatchRequest.digest`, `LineFault.digest`."""
        except BaseException:
            os.close(self._file)
            raise

    def append(self, data: bytes) -> None:
        """Write a whole line, or nothing: raises `BatchError` then."""
        try:
            num_written = os.pwrite(self._file, data, self._size)
            while num_written < len(data):
                rest = data[num_written:]
                num_written += os.pwrite(self._file, rest, self._size + num_written)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            text = f"{self.path}: {error.strerror}; its lines are whole: go on with --resume"
            raise BatchError(text) from None
        self._size += len(data)
        self._unsynced = True

    def sync(self) -> None:
        """Let what was written outlive the machine. May be called from any thread."""
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            os.fsync(self._file)
        except OSError as error:
            raise BatchError(f"{self.path}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def same_file(self, path: Path) -> bool:
        """Whether `path` is this file."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._file))
        except OSError:
            return False

    def _claim(self) -> None:
        if not S_ISREG(os.fstat(self._file).st_mode):
            raise BatchError(f"{self.path} is not a plain file")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BatchError(f"{self.path} is being written by another run") from None

    def _sync_folder(self) -> None:
        """Let the file's name outlive the machine."""
        with suppress(OSError):
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _recover(self, resume: bool) -> set[str]:
        """What earlier runs wrote; a torn last line is cut."""
        size = os.fstat(self._file).st_size
        if not size:
            self._sync_folder()
        if size and not resume:
            text = f"{self.path} is not empty: go on with --resume, or name another file"
            raise BatchError(text)
        written: set[str] = set()
        self._size = 0
        for number, line in enumerate(self._lines(), 1):
            if not line.endswith(b"\n"):
                if not (line.startswith(START) or START.startswith(line)):
                    raise BatchError(f"{self.path}: line {number} is no result of a batch")
                break
            written.add(self._digest(line, number))
            self._size += len(line)
        if self._size < size:
            os.ftruncate(self._file, self._size)
            self._unsynced = True
        return written

    def _digest(self, line: bytes, number: int) -> str:
        try:
            result = msgspec.json.decode(line, type=_Written)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BatchError(f"{self.path}: line {number} is no result of a batch") from None
        if result.custom_id is not None:
            return digest_of(result.custom_id)
        return result.id.removeprefix("batch_req_")

    def _lines(self) -> Iterator[bytes]:
        """From the file's start, the last perhaps without its end."""
        with os.fdopen(os.dup(self._file), "rb", buffering=_PIECE) as file:
            yield from file
