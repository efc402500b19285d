"""A server over the stand-in, and the `openai` package's client of a module's server."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.http_server import ServerProcess, run_server
from tests.support.openai_client import client_of


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A plain one; modules that need another have their own."""
    with run_server() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """It does not try again."""
    with client_of(server) as client:
        yield client
