"""Files and batches as OpenAI's clients read them, and as they lie on disk."""

import secrets
import time
from typing import Any, Literal

import msgspec

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
UNFINISHED: frozenset[BatchStatus] = frozenset(
    {"validating", "in_progress", "finalizing", "cancelling"}
)
MIN_EXPIRY, MAX_EXPIRY = 3600, 2_592_000
"""Seconds for which a client may have a file kept."""


class FileRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A file that was uploaded, or that a batch made."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    """From when on it is not there any more."""
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    owner: str = ""
    """Whose it is: made of the API key; never told."""


class RequestCounts(msgspec.Struct):
    """Lines of a batch; those that were not answered are neither completed nor failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """Of the tokens made, those that the answer does not show: there are none."""

    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct):
    """Tokens of all answers. What the prefix cache held is not told: it differs from run to run."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class BatchFault(msgspec.Struct, frozen=True):
    """Why a whole batch failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchFaults(msgspec.Struct, frozen=True):
    """A list, as OpenAI has it."""

    data: list[BatchFault]
    object: Literal["list"] = "list"


class BatchRecord(msgspec.Struct, kw_only=True):
    """A batch; times are in seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchFaults | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    metadata: dict[str, str] | None = None
    model: str | None = None
    """That of the answers, once they are all there."""
    usage: BatchUsage | None = None
    output_seconds: int | None = None
    """For how long its files are kept, if the client said so; never told."""
    owner: str = ""

    def turn(self, status: BatchStatus, now: int) -> None:
        """Take on a status, and note when."""
        self.status = status
        setattr(self, f"{status}_at", now)


def public(record: FileRecord | BatchRecord) -> dict[str, Any]:
    """What a client is told."""
    shown: dict[str, Any] = msgspec.to_builtins(record)
    for hidden in ("owner", "output_seconds"):
        shown.pop(hidden, None)
    shown["object"] = record.object
    if isinstance(record, FileRecord):
        shown["status"] = record.status
    return shown


def stamp(microseconds: int) -> str:
    """The beginning of an id: ids in their order are in that of their times."""
    return f"{microseconds:014x}"


def new_id(kind: str) -> str:
    """An id that nobody can guess, after every earlier one of its kind."""
    return f"{kind}{stamp(time.time_ns() // 1000)}{secrets.token_hex(9)}"
