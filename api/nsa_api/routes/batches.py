"""OpenAI's batches: a file of requests that is answered when there is room."""

import asyncio
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from nsa_api.batches.records import (
    MAX_EXPIRY,
    MIN_EXPIRY,
    UNFINISHED,
    BatchRecord,
    new_id,
    public,
)
from nsa_api.batches.store import Store
from nsa_api.errors import ApiError, bad_request
from nsa_api.openapi import documented, paged
from nsa_api.responses import BatchList
from nsa_api.routes.common import json_response
from nsa_api.routes.files import batch_worker, find_file, owner_of
from nsa_api.routes.listing import listed
from nsa_api.schemas import Body
from nsa_api.validation import StrictRoute, ignored_header

MAX_UNFINISHED = 64
MAX_LISTED = 100
_HOUR = 3600

router = APIRouter(route_class=StrictRoute)

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ExpiresAfter(Body):
    """How long files are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY, le=MAX_EXPIRY)]


class BatchBody(Body):
    """POST /v1/batches."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}h$")]
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


@router.post("/v1/batches", responses=documented(BatchRecord))
async def create_batch(body: BatchBody, request: Request) -> Response:
    """Answer the requests of a file."""
    worker, owner = batch_worker(request), owner_of(request)
    file = find_file(worker.store, body.input_file_id, owner, "input_file_id")
    if file.purpose != "batch":
        raise bad_request("the file's purpose must be batch", "input_file_id")
    if len(worker.store.unfinished()) >= MAX_UNFINISHED:
        text = f"{MAX_UNFINISHED} batches are unfinished"
        raise ApiError(429, text, code="too_many_batches", headers={"Retry-After": "60"})
    now, expires = int(time.time()), body.output_expires_after
    batch = BatchRecord(
        id=new_id("batch_"),
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + int(body.completion_window[:-1]) * _HOUR,
        metadata=body.metadata,
        output_seconds=expires.seconds if expires is not None else None,
        owner=owner,
    )
    worker.store.save(batch)
    answer = json_response(public(batch), ignored_header(body))
    worker.start()
    return answer


@router.get("/v1/batches", responses=documented(BatchList), openapi_extra=paged(MAX_LISTED))
async def list_batches(request: Request) -> Response:
    """Every batch, the newest first."""
    owner = owner_of(request)
    batches = [b for b in batch_worker(request).store.batches.values() if b.owner == owner]
    return listed(request, batches, default_limit=20, max_limit=MAX_LISTED)


@router.get("/v1/batches/{batch_id}", responses=documented(BatchRecord))
async def get_batch(batch_id: str, request: Request) -> Response:
    """One of them, as it is now."""
    return json_response(public(_find(batch_worker(request).store, batch_id, owner_of(request))))


@router.post("/v1/batches/{batch_id}/cancel", responses=documented(BatchRecord))
async def cancel_batch(batch_id: str, request: Request) -> Response:
    """End it; what was answered is kept."""
    worker = batch_worker(request)
    batch = _find(worker.store, batch_id, owner_of(request))
    if batch.status not in UNFINISHED:
        text = f"A batch that is {batch.status} cannot be cancelled"
        raise ApiError(400, text, code="batch_finished")
    if batch.status in ("validating", "in_progress"):
        worker.cancel(batch)
        await asyncio.sleep(0)
    return json_response(public(batch))


def _find(store: Store, batch_id: str, owner: str) -> BatchRecord:
    batch = store.batches.get(batch_id)
    if batch is None or batch.owner != owner:
        raise ApiError(404, f"No such batch: {batch_id[:64]!r}", code="not_found")
    return batch
