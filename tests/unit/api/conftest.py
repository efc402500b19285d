"""A fake engine and a client of a server over it."""

import pytest
from fastapi.testclient import TestClient

from tests.support.api import make_client
from tests.support.fake_engine import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    return make_client(engine)
