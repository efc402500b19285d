"""Engine processes that hang, stop and die under a real server, and what the log says of it."""

import os
import signal
import time

import httpx
import pytest

from tests.support.api import events
from tests.support.http_server import children, is_running, run_server, wait_until
from tests.support.http_streams import PATH, Streams, body, error_code

IMPATIENT = {"stuck_timeout": 0.3}


def test_a_step_that_hangs_makes_it_unready_and_dumps_the_stacks() -> None:
    hanging = {"step_seconds": 60.0}
    with run_server(stand_in=hanging, settings=IMPATIENT) as server, server.connect() as connection:
        request = httpx.Request("POST", server.url + PATH, json=body(stream=True))
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        wait_until(lambda: server.http.get("/health/ready").status_code == 503, timeout=5)
        assert error_code(server.http.get("/health/ready")) == "stuck"
        assert server.http.get("/health").status_code == 200
        wait_until(lambda: "no step has ended" in server.output(), timeout=5)
        log = server.output()
        assert "the engine process is sleeping" in log
        assert "stand_in.py" in log
        assert "in execute" in log
        assert server.metric("engine_stalls_total") == 1
        assert server.metric("ready") == 0


def test_a_stopped_engine_is_told_of_and_answers_when_it_goes_on() -> None:
    with run_server(stand_in={"step_seconds": 0.01}, settings=IMPATIENT) as server:
        (engine,) = children(server.process.pid)
        streams = Streams(server, 1, max_tokens=8000)
        os.kill(engine, signal.SIGSTOP)
        wait_until(lambda: "the engine process is stopped" in server.output(), timeout=5)
        assert "it does not answer" in server.output()
        os.kill(engine, signal.SIGCONT)
        wait_until(lambda: "answered late" in server.output(), timeout=5)
        assert "in execute" in server.output() or "in receive" in server.output()
        wait_until(lambda: server.http.get("/health/ready").status_code == 200, timeout=5)
        streams.leave()


def test_whoever_runs_it_can_ask_where_the_http_process_stands() -> None:
    with run_server() as server:
        server.signal(signal.SIGUSR1)
        wait_until(lambda: "most recent call first" in server.output(), timeout=5)
        assert "asyncio" in server.output()
        assert server.http.post(PATH, json=body()).status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it is started anew after 0, 1, 2, 4 … 30 seconds
def test_twenty_deaths_of_the_engine_under_load() -> None:
    with run_server(stand_in={"step_seconds": 0.005}) as server:
        for death in range(20):
            (engine,) = children(server.process.pid)
            streams = Streams(server, 8, max_tokens=8000)
            os.kill(engine, signal.SIGKILL)
            killed = time.monotonic()
            for text in streams.results():
                assert events(text)[-1]["error"]["code"] == "engine_dead"
            too_soon = server.http.post(PATH, json=body())
            assert too_soon.status_code in (200, 503)
            assert time.monotonic() - killed < 2
            wait_until(lambda: server.http.get("/health/ready").status_code == 200, timeout=120)
            assert not is_running(engine)
            assert len(children(server.process.pid)) == 1
            assert server.http.post(PATH, json=body()).status_code == 200
            assert server.metric("engine_restarts_total") == death + 1
        assert server.metric("num_requests_running") == 0
        assert server.metric("kv_cache_usage_perc") == 0
        assert "Traceback" not in server.output()
