"""A client that goes away takes its work with it, streaming or not."""

import asyncio
from typing import Any

import msgspec
import pytest

from nsa_api.app import create_app
from nsa_api.settings import ApiSettings
from tests.support.api import COMPLETIONS, completion_body
from tests.support.fake_engine import FakeEngine


async def leave_while_running(engine: FakeEngine, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Post `body`, go away once the engine works on it, and give what was answered till then."""
    app = create_app(engine, ApiSettings())
    raw = msgspec.json.encode(body)
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": raw}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop()
        while not engine.running:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(raw)).encode()),
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": COMPLETIONS,
        "headers": headers,
        "query_string": b"",
    }
    await asyncio.wait_for(app(scope, receive, send), 5)
    state = app.state.server
    assert state.num_in_flight == 0
    aborted = {"model_name": "fake", "finished_reason": "abort"}
    count = state.metrics.registry.get_sample_value("nsa_serve:request_success_total", aborted)
    assert count == len(engine.calls)
    return sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold_after", [0, 3])
@pytest.mark.parametrize("prompt", ["one", ["one", "two"]])
def test_disconnect_frees_the_engine(stream: bool, hold_after: int, prompt: Any) -> None:
    engine = FakeEngine()
    engine.hold_after = hold_after
    sent = asyncio.run(leave_while_running(engine, completion_body(prompt=prompt, stream=stream)))
    assert engine.calls
    assert engine.running == set()
    assert any(message["type"] == "http.response.start" for message in sent) == (
        not stream or hold_after > 0
    )
    assert not any(b"[DONE]" in message.get("body", b"") for message in sent)
