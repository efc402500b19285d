"""The built-in page, and what it reads: live figures and selections."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nsa_api.live import MAX_STREAMS, LiveFigures, LiveView
from nsa_api.page import FILES, content
from nsa_api.routes.live import _events
from nsa_api.state import ServerState
from nsa_serve.engine.messages import (
    EngineStats,
    LayerSelection,
    Selection,
    SequenceOutput,
    SequenceProgress,
    StepOutputs,
)
from nsa_serve.engine.watching import RequestProgress
from nsa_serve.outputs import RequestTimes
from tests.support.api import make_client
from tests.support.fake_engine import FakeEngine

ID = "chatcmpl-0123456789abcdef0123456789abcdef"
SELECTION = Selection(
    7,
    position=100,
    select_block=16,
    num_selected=4,
    init_blocks=1,
    local_blocks=2,
    window=32,
    layers=[
        LayerSelection([[0, 3, 5, 6], [0, 2, 5, 6]], [[0.25, 0.5, 1.0], [0.0, 0.0, 0.75]]),
        LayerSelection(None, None),
    ],
)


@pytest.mark.parametrize("path", FILES)
def test_page_is_public_and_bars_everything_from_outside(engine: FakeEngine, path: str) -> None:
    client = make_client(engine, api_keys=("secret-key",))
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content == content(path)
    assert answer.headers["Content-Type"].partition(";")[0] == FILES[path][1]
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "secret-key" not in answer.text
    again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_page_is_there_before_the_model() -> None:
    assert make_client(None).get("/").status_code == 200


def test_page_names_only_files_of_its_own() -> None:
    for path, (_, kind) in FILES.items():
        text = content(path).decode()
        outside = set(re.findall(r"https?://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, path
        for name in re.findall(r"[\"'](/page/[^\"']+)[\"']", text):
            assert name in FILES
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert f"/page/{name}" in FILES
        if kind == "text/html":
            assert not re.search(r"\sstyle=|\son\w+=|<style|<script>", text), "the policy bars it"


@pytest.mark.parametrize("path", ["/v1/live", f"/v1/live/requests/{ID}/selection"])
def test_live_figures_need_the_key(engine: FakeEngine, path: str) -> None:
    client = make_client(engine, api_keys=("key",))
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/v1/live", f"/v1/live/requests/{ID}/selection"])
def test_live_figures_need_an_engine(path: str) -> None:
    answer = make_client(None).get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")


def in_flight(request_id: str = ID) -> RequestProgress:
    return RequestProgress(request_id, 1, SequenceProgress(7, "prefill", 1.0, 100, 16, 64, 0, 7, 2))


def view_of(engine: FakeEngine, **settings: Any) -> tuple[ServerState, LiveView]:
    app = make_client(engine, **settings).app
    assert isinstance(app, FastAPI)
    return app.state.server, app.state.live


def step(sequence_id: int, num_tokens: int, times: RequestTimes | None = None) -> StepOutputs:
    output = SequenceOutput(sequence_id, [65] * num_tokens, times=times)
    return StepOutputs([output], EngineStats(step_tokens=10 * num_tokens, num_running=1))


async def two_events(engine: FakeEngine, state: ServerState, view: LiveView) -> list[LiveFigures]:
    """Two events, with steps between them; then the client leaves."""
    frames: AsyncGenerator[bytes, None] = _events(state, engine, view)
    found = []
    async with aclosing(frames):
        found.append(await anext(frames))
        (on_step,) = engine.on_step
        first = RequestTimes(arrived=10.0, first_scheduled=10.1, first_token=10.5, last_token=10.5)
        last = RequestTimes(arrived=10.0, first_scheduled=10.1, first_token=10.5, last_token=12.0)
        for each in (step(1, 1, first), step(1, 1), step(1, 1, last)):
            on_step(each)
        engine.stats = EngineStats(num_running=1)
        found.append(await anext(frames))
    return [msgspec.json.decode(f.removeprefix(b"data: "), type=LiveFigures) for f in found]


def test_events_tell_what_steps_did_in_between(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsa_api.routes.live._SECONDS_BETWEEN_EVENTS", 0.01)
    engine.in_flight = [in_flight()]
    before = list(engine.on_step)
    state, view = view_of(engine)
    engine.on_step.clear()
    quiet, busy = asyncio.run(two_events(engine, state, view))
    assert engine.on_step == before[:0], "nothing listens once nobody looks"
    assert (quiet.state, quiet.num_steps, quiet.generation_tokens_per_second) == ("ready", 0, 0.0)
    assert quiet.time_to_first_token_seconds.mean is None
    assert quiet.engine.model == "fake"
    assert busy.num_steps == 3
    assert busy.generation_tokens_per_second * busy.interval == pytest.approx(3)
    assert busy.computed_tokens_per_second * busy.interval == pytest.approx(30)
    assert busy.time_to_first_token_seconds.count == 1
    assert busy.time_to_first_token_seconds.p50 == pytest.approx(0.5)
    assert busy.inter_token_latency_seconds.count == 2
    assert busy.stats.num_running == 1
    (request,) = busy.requests or []
    assert (request.id, request.index, request.state) == (ID, 1, "prefill")
    assert (request.num_prompt_tokens, request.num_cached_tokens) == (100, 16)
    assert (request.num_computed_tokens, request.num_generated_tokens) == (64, 0)
    assert (request.num_pages, request.num_preemptions) == (7, 2)


def test_events_end_when_the_server_drains(engine: FakeEngine) -> None:
    client = make_client(engine)
    assert isinstance(client.app, FastAPI)
    client.app.state.server.draining = True
    assert client.get("/v1/live").status_code == 503

    async def drain() -> list[bytes]:
        state, view = view_of(engine)
        frames = _events(state, engine, view)
        first = await anext(frames)
        state.draining = True
        return [first, *[frame async for frame in frames]]

    assert len(asyncio.run(drain())) == 1


def test_an_engine_that_does_not_answer_leaves_the_requests_out(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck() -> list[RequestProgress]:
        raise TimeoutError

    monkeypatch.setattr(engine, "progress", stuck)
    _, view = view_of(engine)

    async def look() -> LiveFigures:
        with view.looking(engine) as window:
            return await view.figures(engine, window)

    assert asyncio.run(look()).requests is None


@pytest.mark.parametrize(("keys", "shown"), [((), ID), (("a",), ID), (("a", "b"), ID[:17])])
def test_ids_are_cut_where_others_have_keys_too(
    engine: FakeEngine, keys: tuple[str, ...], shown: str
) -> None:
    engine.in_flight = [in_flight()]
    _, view = view_of(engine, api_keys=keys)

    async def look() -> LiveFigures:
        with view.looking(engine) as window:
            return await view.figures(engine, window)

    assert [request.id for request in asyncio.run(look()).requests or []] == [shown]


def test_live_views_are_bounded(engine: FakeEngine) -> None:
    client = make_client(engine)
    assert isinstance(client.app, FastAPI)
    view = client.app.state.live
    opened = [view.looking(engine) for _ in range(MAX_STREAMS)]
    for each in opened:
        each.__enter__()
    answer = client.get("/v1/live")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_watchers")
    for each in opened:
        each.__exit__(None, None, None)


def test_selection_of_a_request(client: TestClient, engine: FakeEngine) -> None:
    engine.selections[ID] = SELECTION
    assert client.get(f"/v1/live/requests/{ID}/selection").json() == {
        "id": ID,
        "object": "selection",
        "available": True,
        "position": 100,
        "num_blocks": 7,
        "select_block": 16,
        "num_selected": 4,
        "window": 32,
        "forced_block_ids": [0, 5, 6],
        "layers": [
            {
                "layer": 0,
                "attention": "nsa",
                "selected_block_ids": [[0, 3, 5, 6], [0, 2, 5, 6]],
                "gates": [[0.25, 0.5, 1.0], [0.0, 0.0, 0.75]],
            },
            {"layer": 1, "attention": "dense", "selected_block_ids": None, "gates": None},
        ],
    }


def test_forced_blocks_of_a_short_context(client: TestClient, engine: FakeEngine) -> None:
    engine.selections[ID] = msgspec.structs.replace(SELECTION, position=3)
    answer = client.get(f"/v1/live/requests/{ID}/selection").json()
    assert (answer["num_blocks"], answer["forced_block_ids"]) == (1, [0])


def test_selection_that_cannot_be_had(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/live/requests/{ID}/selection"
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
    engine.selections[ID] = Selection(7, unavailable="it could not be recorded")
    assert client.get(path).json() == {
        "id": ID,
        "object": "selection",
        "available": False,
        "reason": "it could not be recorded",
    }

    async def waits(request_id: str, *, seconds: float) -> Selection | None:
        raise TimeoutError

    monkeypatch.setattr(engine, "selection", waits)
    assert client.get(path).json()["reason"] == "no decode step within 5 s"


def test_a_client_watches_once_at_a_time(client: TestClient, engine: FakeEngine) -> None:
    engine.selections[ID] = SELECTION
    assert isinstance(client.app, FastAPI)
    path = f"/v1/live/requests/{ID}/selection"
    with client.app.state.live.watching("b'' testclient"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_watchers")
    assert client.get(path).status_code == 200
