"""Start, drain and death of a server, as clients and orchestrators see them."""

import signal
import socket
import time

import httpx

from tests.support.api import events
from tests.support.http_server import children, is_running, run_server, wait_until
from tests.support.http_streams import PATH, Streams, body, error_code

SLOW = {"step_seconds": 0.02}


def test_port_answers_503_until_the_model_is_loaded() -> None:
    with run_server(until_ready=False) as server:
        seen: list[int] = []

        def is_ready() -> bool:
            try:
                seen.append(server.http.get("/health/ready").status_code)
            except httpx.ConnectError:
                return False
            return seen[-1] == 200

        wait_until(is_ready)
        assert set(seen[:-1]) == {503}
        assert server.http.post(PATH, json=body()).status_code == 200
        (line,) = [line for line in server.output().splitlines() if "is ready" in line]
        assert server.url in line
        assert "engine" in line


def test_sigterm_lets_streams_finish_and_takes_no_new_request() -> None:
    with run_server(stand_in=SLOW) as server:
        (engine,) = children(server.process.pid)
        streams = Streams(server, 32, max_tokens=40)
        server.signal()
        wait_until(lambda: server.http.get("/health/ready").status_code == 503)
        refused = server.http.post(PATH, json=body())
        assert (refused.status_code, error_code(refused)) == (503, "draining")
        assert int(refused.headers["Retry-After"]) > 0
        assert server.http.get("/health").status_code == 200
        assert "what runs (32) may finish within 30 s" in server.output()
        for text in streams.results():
            assert events(text)[-1]["choices"][0]["finish_reason"] == "length"
        finished = time.monotonic()
        assert server.wait(5) == 0
        assert time.monotonic() - finished < 1.5
        assert not is_running(engine)
        assert "Traceback" not in server.output()


def test_drain_limit_ends_streams_with_an_error_event() -> None:
    with run_server(stand_in=SLOW, settings={"shutdown_timeout": 0.3}) as server:
        streams = Streams(server, 8, max_tokens=8000)
        server.signal()
        signalled = time.monotonic()
        for text in streams.results():
            assert events(text)[-1]["error"]["code"] == "aborted"
        assert server.wait(5) == 0
        assert time.monotonic() - signalled < 0.3 + 2
        assert "Traceback" not in server.output()


def test_second_signal_ends_it_at_once() -> None:
    with run_server(stand_in=SLOW) as server:
        (engine,) = children(server.process.pid)
        streams = Streams(server, 2, max_tokens=8000)
        server.signal(signal.SIGINT)
        wait_until(lambda: server.http.get("/health/ready").status_code == 503)
        server.signal(signal.SIGINT)
        server.wait(1)
        wait_until(lambda: not is_running(engine), timeout=5)
        streams.leave()


def test_signal_while_loading_ends_it() -> None:
    with run_server(until_ready=False) as server:
        wait_until(lambda: children(server.process.pid))
        server.signal()
        assert server.wait(5) == 0
        assert "Traceback" not in server.output()


def test_server_death_takes_the_engine_along() -> None:
    with run_server() as server:
        (engine,) = children(server.process.pid)
        server.signal(signal.SIGKILL)
        wait_until(lambda: not is_running(engine), timeout=5)


def test_taken_port_is_one_line_and_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with run_server(settings={"port": port}, until_ready=False) as server:
            assert server.wait(20) != 0
            (line,) = server.output().splitlines()
            assert f"port {port}" in line


def test_model_that_does_not_load_is_one_line_and_a_failure() -> None:
    with run_server(stand_in={"load_error": "weights are missing"}, until_ready=False) as server:
        assert server.wait(20) != 0
        assert "weights are missing" in server.output().splitlines()[-1]
