"""`serve` puts the engine and the HTTP API together."""

import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.command_line import start


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(end: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('port = 0\napi-key = "secret"\n')
    flags = ["--config", str(tmp_path / "serve.toml"), "--served-model-name", "one"]
    with start("serve", "--runner", "stand-in", *flags) as process:
        url = _url_when_ready(process)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        models = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret"})
        assert [model["id"] for model in models.json()["data"]] == ["one"]
        process.send_signal(end)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"Traceback" not in err


def _url_when_ready(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(rb"ready at (http://\S+)", line):
            return match[1].decode()
    raise AssertionError("the server ended")


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start("serve", "--runner", "stand-in", "--port", str(port)) as process:
            _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith(f"error: cannot listen on 127.0.0.1 port {port}".encode())
    assert err.count(b"\n") == 1
