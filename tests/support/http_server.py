"""A server process over the stand-in runner, as tests of HTTP see it: by its port and signals."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec

from nsa_serve.engine.stand_in import OPTIONS_VARIABLE
from nsa_serve.logs import FORMAT_VARIABLE

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 60.0

_RUN = """
import os, sys, msgspec
from nsa_api.server import serve
from nsa_api.settings import ApiSettings
from nsa_serve.config import EngineConfig
from nsa_serve.errors import ConfigError
from nsa_serve.logs import FORMAT_VARIABLE, configure_logs
if FORMAT_VARIABLE in os.environ:
    configure_logs()
config, settings = msgspec.json.decode(sys.argv[1], type=tuple[EngineConfig, ApiSettings])
try:
    serve(config, settings)
except ConfigError as error:
    sys.exit(f"error: {error}")
"""


@dataclass
class ServerProcess:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]
    http: httpx.Client
    """A client of it, for use from any thread."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def talk(self, sent: bytes) -> bytes:
        """Send raw bytes and read until the server closes."""
        with self.connect() as connection:
            connection.sendall(sent)
            return read_all(connection)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def output(self) -> str:
        """All that it printed so far, on both streams."""
        return Path(self.log.name).read_text()

    def metric(self, name: str) -> float:
        """The value of a metric with no label but the model's name."""
        text = self.http.get("/metrics").text
        match = re.search(rf'^nsa_serve:{name}{{model_name="[^"\n]*"}} (.*)$', text, re.MULTILINE)
        assert match, name
        return float(match[1])


@contextmanager
def run_server(
    *,
    settings: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    stand_in: dict[str, Any] | None = None,
    until_ready: bool = True,
    json_log: bool = False,
) -> Iterator[ServerProcess]:
    """Start a server on a free port; it is killed in the end if it still runs.

    With `json_log` its output has a line of JSON for each answer.
    """
    port = free_port()
    config = {"runner": "stand-in", **(engine or {})}
    arguments = msgspec.json.encode([config, {"port": port, **(settings or {})}]).decode()
    options = msgspec.json.encode(stand_in or {}).decode()
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, arguments],
            cwd=ROOT,
            env={
                **os.environ,
                OPTIONS_VARIABLE: options,
                **({FORMAT_VARIABLE: "json"} if json_log else {}),
            },
            stdout=log,
            stderr=log,
        )
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        server = ServerProcess(process, port, log, http)
        try:
            if until_ready:
                wait_until(lambda: "is ready" in server.output() or process.poll() is not None)
                assert process.poll() is None, server.output()
            yield server
        finally:
            http.close()
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], object], timeout: float = SECONDS_TO_START) -> None:
    """Poll until `condition` holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (thread / "children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
