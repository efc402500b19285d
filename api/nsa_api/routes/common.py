"""What the two generating endpoints share."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response

from nsa_api.disconnect import until_disconnect
from nsa_api.engine import Engine
from nsa_api.generation import Generation
from nsa_api.schemas import SamplingFields
from nsa_api.sse import ChunkEncoder
from nsa_api.state import ServerState
from nsa_api.tally import Tally
from nsa_serve.outputs import CompletionOutput, RequestOutput

T = TypeVar("T")


def salt_of(request: Request, body: SamplingFields) -> bytes:
    """Prefix-cache salt: that of the API key, which a body can narrow but never leave."""
    key_salt: bytes = getattr(request.state, "salt", b"")
    if body.cache_salt is None:
        return key_salt
    return hashlib.sha256(key_salt + b"/" + body.cache_salt.encode()).digest()


def chunk_encoder(
    generation: Generation, kind: str, created: int, body: SamplingFields
) -> ChunkEncoder:
    """The encoder of this request's chunks."""
    return ChunkEncoder(
        generation.request_id, kind, created, body.model, with_usage=include_usage(body)
    )


def include_usage(body: SamplingFields) -> bool:
    """Whether a stream ends with its usage."""
    return body.stream_options is not None and body.stream_options.include_usage


def continuous_usage(body: SamplingFields) -> bool:
    """Whether every chunk tells the usage so far."""
    return include_usage(body) and bool(
        body.stream_options and body.stream_options.continuous_usage_stats
    )


def worth_sending(completion: CompletionOutput, body: SamplingFields, *, has_content: bool) -> bool:
    """Whether a chunk would say anything: a token's text may be held back for now."""
    return bool(
        has_content
        or completion.finish_reason
        or completion.logprobs
        or body.return_token_ids
        or continuous_usage(body)
    )


async def run_whole(
    request: Request, state: ServerState, engine: Engine, generation: Generation, tally: Tally
) -> list[RequestOutput]:
    """Outputs of a request that does not stream; raises ClientGone if nobody waits any more."""
    with state.serving(tally):
        return await until_disconnect(request.receive, generation.run(engine, tally))


async def built(generation: Generation, build: Callable[[], T]) -> T:
    """The answer that `build` makes. Log-probabilities of a long prompt are many: what streams
    meanwhile does not wait for them."""
    if generation.params.prompt_logprobs is None:
        return build()
    return await asyncio.to_thread(build)


def json_response(value: Any, headers: dict[str, str] | None = None) -> Response:
    """A 200 with this body."""
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")
