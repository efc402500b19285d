"""What the engine is at: live figures, and what the layers select for a request."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from nsa_api.disconnect import until_disconnect
from nsa_api.engine import Engine
from nsa_api.errors import ApiError
from nsa_api.live import LiveFigures, LiveView
from nsa_api.openapi import documented, documented_events
from nsa_api.routes.common import json_response
from nsa_api.sse import EventStream
from nsa_api.state import ServerState, server_state
from nsa_serve.engine.messages import Selection

router = APIRouter()

_SECONDS_BETWEEN_EVENTS = 1.0
_SECONDS_TO_WATCH = 5.0


class LayerBlocks(msgspec.Struct, frozen=True):
    """What one layer reads for the query."""

    layer: int
    attention: str
    """nsa or dense"""
    selected_block_ids: list[list[int]] | None
    """Of each kv head, ascending; None where the layer has no selected branch."""
    gates: list[list[float]] | None
    """Weights of (compressed, selected, window), of each kv head the mean over its query heads."""


class Unavailable(msgspec.Struct, frozen=True, kw_only=True):
    """There is no selection to tell."""

    id: str
    object: str = "selection"
    available: bool = False
    reason: str


class RequestSelection(msgspec.Struct, frozen=True, kw_only=True):
    """What every layer selects for the query of a request's next decode step."""

    id: str
    object: str = "selection"
    available: bool = True
    position: int
    """Of the query; it sees tokens 0 to itself."""
    num_blocks: int
    """Blocks of `select_block` tokens that it sees, its own included."""
    select_block: int
    num_selected: int
    window: int
    forced_block_ids: list[int]
    """The first and the last blocks, which are always selected."""
    layers: list[LayerBlocks]


def live_view(request: Request) -> LiveView:
    """The live view of the server that took this request."""
    view: LiveView = request.app.state.live
    return view


@router.get(
    "/v1/live",
    response_class=Response,
    responses=documented_events(LiveFigures, "Figures and requests, once a second, without end"),
)
async def live(request: Request) -> Response:
    """Server-sent events, one a second: figures of the engine and the requests in flight."""
    state = server_state(request)
    return EventStream(_events(state, state.engine(), live_view(request)))


async def _events(
    state: ServerState, engine: Engine, view: LiveView
) -> AsyncGenerator[bytes, None]:
    with view.looking(engine) as window:
        while not state.draining:
            yield b"data: " + msgspec.json.encode(await view.figures(engine, window)) + b"\n\n"
            await asyncio.sleep(_SECONDS_BETWEEN_EVENTS)


@router.get(
    "/v1/live/requests/{request_id}/selection",
    responses=documented((RequestSelection, Unavailable)),
)
async def selection(request_id: str, request: Request) -> Response:
    """The blocks that each layer selects for a request's next token, and the gates' weights."""
    engine = server_state(request).engine()
    host = "" if request.client is None else request.client.host
    with live_view(request).watching(f"{getattr(request.state, 'salt', b'')!r} {host}"):
        look = engine.selection(request_id, seconds=_SECONDS_TO_WATCH)
        try:
            found = await until_disconnect(request.receive, look)
        except TimeoutError:
            reason = f"no decode step within {_SECONDS_TO_WATCH:g} s"
            return json_response(Unavailable(id=request_id, reason=reason))
    if found is None:
        raise ApiError(404, "No request of this id is in flight", code="request_not_found")
    return json_response(_answer(request_id, found))


def _answer(request_id: str, found: Selection) -> RequestSelection | Unavailable:
    if found.unavailable is not None:
        return Unavailable(id=request_id, reason=found.unavailable)
    num_blocks = found.position // found.select_block + 1
    forced = {*range(found.init_blocks), *range(num_blocks - found.local_blocks, num_blocks)}
    return RequestSelection(
        id=request_id,
        position=found.position,
        num_blocks=num_blocks,
        select_block=found.select_block,
        num_selected=found.num_selected,
        window=found.window,
        forced_block_ids=sorted(forced.intersection(range(num_blocks))),
        layers=[
            LayerBlocks(
                index,
                "dense" if layer.gates is None else "nsa",
                layer.selected_block_ids,
                layer.gates,
            )
            for index, layer in enumerate(found.layers)
        ],
    )
