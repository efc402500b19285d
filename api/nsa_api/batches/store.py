"""A folder of files and batches that outlives the server. One server has it at a time.

    files/ID.json, ID.jsonl      a file and its content
    batches/ID.json, ID.jsonl    a batch, and while it is worked on what came of it so far

A record is written beside its place and moved there, so a crash leaves the old one or the new.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from nsa_api.batches.records import UNFINISHED, BatchRecord, FileRecord
from nsa_serve.errors import BatchError

Record = TypeVar("Record", FileRecord, BatchRecord)


class Store:
    """The records are in memory too. Raises `BatchError` if the folder cannot be had."""

    def __init__(self, folder: Path, *, max_bytes: int, max_seconds: float) -> None:
        self.folder, self._max_bytes, self._max_seconds = folder, max_bytes, max_seconds
        try:
            self._lock = _lock(folder)
            self.files = _load(folder / "files", FileRecord)
            self.batches = _load(folder / "batches", BatchRecord)
            self._drop_strays()
            self.drop_old()
        except OSError as error:
            raise BatchError(f"{folder}: {error.strerror}") from None

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._lock)

    @property
    def num_bytes(self) -> int:
        """What all files take."""
        return sum(file.bytes for file in list(self.files.values()))

    @property
    def room(self) -> int:
        """Bytes that may be added."""
        return max(0, self._max_bytes - self.num_bytes)

    def expiry(self, created_at: int, seconds: int | None) -> int:
        """When a file ends that is to be kept for so long, or for as long as we keep any."""
        return int(created_at + min(seconds or self._max_seconds, self._max_seconds))

    def find_file(self, file_id: str) -> FileRecord | None:
        """A file that has not expired; one that has is forgotten, once no batch reads it."""
        file = self.files.get(file_id)
        if file is None or not self._is_over(file):
            return file
        if not self.in_use(file.id):
            self.delete_file(file)
        return None

    def live_files(self) -> list[FileRecord]:
        """All files that have not expired; the others are forgotten."""
        self.drop_old()
        return [file for file in list(self.files.values()) if not self._is_over(file)]

    def content(self, file_id: str) -> Path:
        """Where a file's bytes are."""
        return self.folder / "files" / f"{file_id}.jsonl"

    def partial(self, batch_id: str) -> Path:
        """Where a batch's results go while it is worked on."""
        return self.folder / "batches" / f"{batch_id}.jsonl"

    def save(self, record: FileRecord | BatchRecord) -> None:
        """Write a record; it is known from then on. Raises `BatchError` if it cannot be kept."""
        if isinstance(record, FileRecord):
            self.files[record.id] = record
        else:
            self.batches[record.id] = record
        kind = "files" if isinstance(record, FileRecord) else "batches"
        place = self.folder / kind / f"{record.id}.json"
        draft = place.with_suffix(".new")
        try:
            with open(draft, "wb", opener=_private) as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(place)
        except OSError as error:
            raise BatchError(f"{place}: {error.strerror}") from None

    def delete_file(self, file: FileRecord) -> None:
        """Forget a file and its content."""
        del self.files[file.id]
        (self.folder / "files" / f"{file.id}.json").unlink(missing_ok=True)
        self.content(file.id).unlink(missing_ok=True)

    def in_use(self, file_id: str) -> bool:
        """Whether an unfinished batch reads a file."""
        return any(batch.input_file_id == file_id for batch in self.unfinished())

    def unfinished(self) -> list[BatchRecord]:
        """Batches that are to be worked on, the oldest first."""
        batches = [batch for batch in self.batches.values() if batch.status in UNFINISHED]
        return sorted(batches, key=lambda batch: batch.id)

    def drop_old(self) -> None:
        """Forget what is past its age, unless an unfinished batch needs it."""
        for file in list(self.files.values()):
            if self._is_over(file) and not self.in_use(file.id):
                self.delete_file(file)
        oldest = time.time() - self._max_seconds
        for batch in list(self.batches.values()):
            if batch.created_at < oldest and batch.status not in UNFINISHED:
                del self.batches[batch.id]
                (self.folder / "batches" / f"{batch.id}.json").unlink(missing_ok=True)

    def _is_over(self, file: FileRecord) -> bool:
        return time.time() >= (file.expires_at or self.expiry(file.created_at, None))

    def _drop_strays(self) -> None:
        """Content that a crash left without a record."""
        for path in (self.folder / "files").glob("file-*"):
            if path.stem not in self.files:
                path.unlink()
        for path in (self.folder / "batches").glob("batch_*"):
            if path.stem not in self.batches:
                path.unlink()


def _lock(folder: Path) -> int:
    for path in (folder, folder / "files", folder / "batches"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise BatchError(f"{folder} belongs to another server that runs") from None
    return lock


def _load(folder: Path, kind: type[Record]) -> dict[str, Record]:
    return {record.id: record for record in _records(folder, kind)}


def _records(folder: Path, kind: type[Record]) -> Iterator[Record]:
    for path in folder.glob("*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BatchError(f"{path} is damaged; remove it") from None
        if record.id == path.stem:
            yield record


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
