"""The watchdog: one record when work waits and no step ends, and one when that is over."""

import asyncio
import time

import pytest

from nsa_api import watchdog
from nsa_api.settings import ApiSettings
from nsa_api.state import ServerState
from nsa_api.watchdog import Watchdog
from tests.support.fake_engine import FakeEngine


class EngineWithStacks:
    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.num_asked = 0

    def ask_for_stacks(self) -> None:
        self.num_asked += 1

    def read_stacks(self) -> str:
        return self._answers.pop(0)

    def process_state(self) -> str:
        return "stopped"


@pytest.mark.parametrize(("first", "late"), [("File x, line 1", ""), ("", "File y, line 2")])
def test_it_tells_once_of_each_time(
    first: str, late: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "_SECONDS_TO_ANSWER", 0.0)
    engine, stacks = FakeEngine(), EngineWithStacks(first, late)
    state = ServerState(ApiSettings(stuck_timeout=0.04))
    state.attach(engine)

    async def scene() -> None:
        watching = asyncio.create_task(Watchdog(state, stacks).run())
        await asyncio.sleep(0.1)
        assert stacks.num_asked == 0  # idle
        state.num_in_flight = 1
        engine.last_step_time = time.monotonic() - 1
        await asyncio.sleep(0.2)
        engine.last_step_time = time.monotonic() + 1000
        await asyncio.sleep(0.1)
        watching.cancel()

    asyncio.run(scene())
    assert stacks.num_asked == 1
    told, *ended = [record.getMessage() for record in caplog.records]
    assert "the engine process is stopped" in told
    assert (first or "it does not answer") in told
    assert ended[0] == "the engine is no longer stuck"
    assert late in ended[-1]
    registry = state.metrics.registry
    stalls = registry.get_sample_value("nsa_serve:engine_stalls_total", {"model_name": "fake"})
    assert stalls == 1
