"""Clients for the HTTP API over a fake engine, and readers of its streams."""

from typing import Any

import msgspec
from fastapi.testclient import TestClient

from nsa_api.app import create_app
from nsa_api.settings import ApiSettings
from tests.support.fake_engine import FakeEngine

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
DONE = "data: [DONE]"


def make_client(engine: FakeEngine | None, **settings: Any) -> TestClient:
    """A client of a server that has loaded `engine`, or that is still starting."""
    app = create_app(engine, ApiSettings(**settings))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def completion_body(**fields: Any) -> dict[str, Any]:
    """A good request for a completion, with `fields` over it."""
    return {"model": "fake", "prompt": "Hello", **fields}


def chat_body(**fields: Any) -> dict[str, Any]:
    """A good request for a chat completion, with `fields` over it."""
    return {"model": "fake", "messages": [{"role": "user", "content": "Hello"}], **fields}


def events(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream, which must end with [DONE]."""
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == DONE
    assert all(line.startswith("data: ") for line in lines)
    return [msgspec.json.decode(line.removeprefix("data: ")) for line in lines[:-1]]
