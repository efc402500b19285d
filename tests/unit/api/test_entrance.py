"""Requests on their way into the queue: counted until they have their places, and no longer."""

import asyncio

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from nsa_api.entrance import Entrance, about_to_reserve
from nsa_serve.errors import GenerationError, QueueFullError
from tests.support.api import CHAT, COMPLETIONS, chat_body, completion_body, make_client
from tests.support.fake_engine import FakeEngine


class NarrowEngine(FakeEngine):
    """Has two places."""

    def check_room(self, num_coming: int) -> None:
        if len(self.running) + num_coming >= 2:
            raise QueueFullError("full", retry_after=7.0)


def test_those_on_their_way_fill_the_queue_for_those_behind() -> None:
    entrance, engine = Entrance(), NarrowEngine()

    async def come(may_reserve: asyncio.Event) -> None:
        with entrance.entering(engine):
            await may_reserve.wait()
            about_to_reserve()
            about_to_reserve()  # for its second prompt
            engine.running.add(str(len(engine.running)))

    async def scene() -> None:
        may_reserve = asyncio.Event()
        first = [asyncio.create_task(come(may_reserve)) for _ in range(2)]
        await asyncio.sleep(0)
        assert entrance.num_entering == 2
        with pytest.raises(QueueFullError):
            await come(may_reserve)
        may_reserve.set()
        await asyncio.gather(*first)
        assert entrance.num_entering == 0
        with pytest.raises(QueueFullError):
            await come(may_reserve)
        engine.running.clear()
        await come(may_reserve)

    asyncio.run(scene())
    assert entrance.num_entering == 0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [False, True])
def test_nobody_is_on_the_way_once_it_is_answered(path: str, stream: bool) -> None:
    engine = NarrowEngine()
    client = make_client(engine)
    assert isinstance(client.app, FastAPI)
    make = completion_body if path == COMPLETIONS else chat_body
    for _ in range(3):
        assert client.post(path, json=make(stream=stream)).status_code == 200
        assert client.post(path, json=make(stream=stream, temperature=-1)).status_code == 400
        assert client.get(path).status_code == 405
        engine.failure = GenerationError("no number")
        assert client.post(path, json=make(stream=stream)).status_code == 500
        engine.failure = None
        assert client.app.state.server.entrance.num_entering == 0


def test_a_full_queue_is_told_before_the_body_is_read(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(num_coming: int) -> None:
        raise QueueFullError("full", retry_after=7.0)

    monkeypatch.setattr(engine, "check_room", full)
    for path in (COMPLETIONS, CHAT):
        answer = client.post(path, content=b"no JSON", headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert answer.headers["Retry-After"] == "7"
    assert client.post("/tokenize", json={"model": "fake", "prompt": "x"}).status_code == 200
    assert engine.calls == []
