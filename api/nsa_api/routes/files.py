"""OpenAI's files: what batches read and make."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from nsa_api.batches.multipart import Part, boundary_of, parts
from nsa_api.batches.records import MAX_EXPIRY, MIN_EXPIRY, FileRecord, new_id, public
from nsa_api.batches.store import Store
from nsa_api.batches.worker import BatchWorker
from nsa_api.body import MIN_BODY_RATE
from nsa_api.disconnect import ClientGone
from nsa_api.errors import ApiError, bad_request
from nsa_api.openapi import UPLOAD, documented, documented_as, paged
from nsa_api.responses import FileDeleted, FileList
from nsa_api.routes.common import json_response
from nsa_api.routes.listing import listed
from nsa_api.settings import ApiSettings
from nsa_api.state import server_state

router = APIRouter()

MAX_LISTED = 10_000
_MAX_FIELD_BYTES = 1024
_MAX_NAME = 255
_MAX_NAMED = 32
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.\[\]\-]{1,64}")
_MAX_OTHER_BYTES = 64 << 10
"""Of a form beside its file."""


def batch_worker(request: Request) -> BatchWorker:
    """What works through this server's batches; a 404 where it has none."""
    worker: BatchWorker | None = request.app.state.batches
    if worker is None:
        text = "This server keeps no files: it was started without a batch folder"
        raise ApiError(404, text, code="batches_off")
    return worker


def owner_of(request: Request) -> str:
    """Whose files a request sees: those of its key."""
    salt: bytes = getattr(request.state, "salt", b"")
    return salt.hex()


def find_file(store: Store, file_id: str, owner: str, param: str | None = None) -> FileRecord:
    """A file of this owner; raises a 404."""
    file = store.find_file(file_id)
    if file is None or file.owner != owner:
        raise ApiError(404, f"No such file: {file_id[:64]!r}", code="not_found", param=param)
    return file


@router.post("/v1/files", responses=documented(FileRecord), openapi_extra=UPLOAD)
async def create_file(request: Request) -> Response:
    """Upload the requests of a batch."""
    store = batch_worker(request).store
    store.drop_old()
    upload = _Upload(store, server_state(request).settings)
    try:
        record = await upload.read(request, owner_of(request))
        await asyncio.to_thread(store.save, record)
    except BaseException:
        upload.path.unlink(missing_ok=True)
        raise
    return json_response(public(record), upload.ignored_header)


@router.get(
    "/v1/files",
    responses=documented(FileList),
    openapi_extra=paged(MAX_LISTED, purpose={"type": "string"}),
)
async def list_files(request: Request) -> Response:
    """Every file, the newest first."""
    owner, purpose = owner_of(request), request.query_params.get("purpose")
    files = [
        file
        for file in batch_worker(request).store.live_files()
        if file.owner == owner and purpose in (None, file.purpose)
    ]
    return listed(request, files, default_limit=MAX_LISTED, max_limit=MAX_LISTED)


@router.get("/v1/files/{file_id}", responses=documented(FileRecord))
async def get_file(file_id: str, request: Request) -> Response:
    """One of them."""
    return json_response(public(find_file(batch_worker(request).store, file_id, owner_of(request))))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses=documented_as("application/octet-stream", "The file"),
)
async def get_content(file_id: str, request: Request) -> Response:
    """Its bytes."""
    store = batch_worker(request).store
    file = find_file(store, file_id, owner_of(request))
    return FileResponse(store.content(file.id), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", responses=documented(FileDeleted))
async def delete_file(file_id: str, request: Request) -> Response:
    """Forget it; a 400 while a batch reads it."""
    store = batch_worker(request).store
    file = find_file(store, file_id, owner_of(request))
    if store.in_use(file.id):
        text = "A batch that is not finished reads this file; cancel it first"
        raise ApiError(400, text, code="file_in_use")
    store.delete_file(file)
    return json_response(FileDeleted(id=file.id, deleted=True))


class _Upload:
    """A form with a file, which goes to disk as it comes."""

    def __init__(self, store: Store, settings: ApiSettings) -> None:
        self._id, self._created_at = new_id("file-"), int(time.time())
        self.path: Path = store.content(self._id)
        self._store, self._timeout = store, settings.read_timeout
        self._max_bytes = min(settings.max_file_bytes, store.room)
        self._fields: dict[str, str] = {}
        self._file: tuple[str, int] | None = None

    async def read(self, request: Request, owner: str) -> FileRecord:
        """The record of the file; raises a 4xx where the form is not good."""
        boundary = boundary_of(request.headers.get("content-type", ""))
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes + _MAX_OTHER_BYTES:
            raise self._too_large()
        async for part in parts(self._chunks(request), boundary):
            if part.name == "file":
                await self._keep(part)
            else:
                await self._note(part)
        if self._fields.get("purpose") != "batch":
            raise bad_request("purpose must be batch", "purpose")
        if self._file is None:
            raise bad_request("file is missing", "file")
        filename, size = self._file
        return FileRecord(
            id=self._id,
            bytes=size,
            created_at=self._created_at,
            expires_at=self._store.expiry(self._created_at, self._seconds_to_keep()),
            filename=filename,
            purpose="batch",
            owner=owner,
        )

    @property
    def ignored_header(self) -> dict[str, str]:
        """The header that names the fields that nothing honours, if there are any."""
        names = [n for n in self._fields if n not in _FIELDS and _HEADER_SAFE.fullmatch(n)]
        return {"X-Ignored-Fields": ", ".join(names[:_MAX_NAMED])} if names else {}

    def _seconds_to_keep(self) -> int | None:
        """What `expires_after` asks for; forms have no objects, so its fields come one by one."""
        anchor, seconds = (self._fields.get(f"expires_after[{n}]") for n in ("anchor", "seconds"))
        if anchor is None and seconds is None:
            return None
        if anchor != "created_at":
            raise bad_request("expires_after.anchor must be created_at", "expires_after")
        digits = seconds or ""
        if not re.fullmatch("[0-9]{1,9}", digits) or not MIN_EXPIRY <= int(digits) <= MAX_EXPIRY:
            text = f"expires_after.seconds must be a number from {MIN_EXPIRY} to {MAX_EXPIRY}"
            raise bad_request(text, "expires_after")
        return int(digits)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The body, if it comes fast enough and is not too large."""
        loop = asyncio.get_running_loop()
        started, received = loop.time(), 0
        while True:
            try:
                async with asyncio.timeout_at(started + self._timeout + received / MIN_BODY_RATE):
                    message = await request.receive()
            except TimeoutError:
                raise _closing(408, "The body did not arrive in time", "body_timeout") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            received += len(chunk)
            if received > self._max_bytes + _MAX_OTHER_BYTES:
                raise self._too_large()
            yield chunk
            if not message.get("more_body", False):
                return

    async def _keep(self, part: Part) -> None:
        if self._file is not None:
            raise bad_request("file is given twice", "file")
        size = 0
        try:
            with open(self.path, "xb", opener=_private) as file:
                async for piece in part.pieces:
                    size += file.write(piece)
                    if size > self._max_bytes:
                        raise self._too_large()
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        except OSError as error:
            text = f"The file cannot be kept: {error.strerror}"
            raise ApiError(507, text, code="storage_failed") from None
        if not size:
            raise bad_request("file is empty", "file")
        self._file = _clean(part.filename), size

    async def _note(self, part: Part) -> None:
        value = b""
        async for piece in part.pieces:
            value += piece
            if len(value) > _MAX_FIELD_BYTES:
                raise bad_request(f"{part.name[:64]} is too long", part.name[:64])
        self._fields[part.name] = value.decode("utf-8", "replace")

    def _too_large(self) -> ApiError:
        text = f"The file is larger than {self._max_bytes} bytes"
        return _closing(413, text, "file_too_large")


def _clean(name: str | None) -> str:
    """A file's name without folders and control characters; only ever told back."""
    last = re.split(r"[/\\]", name or "")[-1]
    return re.sub(r"[^\w .,()+@=-]", "_", last)[:_MAX_NAME] or "file.jsonl"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _closing(status: int, message: str, code: str) -> ApiError:
    return ApiError(status, message, code=code, headers={"Connection": "close"})
