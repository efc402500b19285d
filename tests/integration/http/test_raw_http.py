"""Bytes on the wire that no client library would send; the server serves on, without a trace."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.http_server import ServerProcess, read_all, run_server

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
GOOD = b'{"model":"stand-in","prompt":"x","max_tokens":1}'


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    settings = {"read_timeout": 0.5, "max_body_bytes": 100_000, "api_keys": ["key"]}
    with run_server(settings=settings) as server:
        yield server


@pytest.fixture
def server(shared: ServerProcess) -> Iterator[ServerProcess]:
    """Whatever a test did, the next request is served and nothing was logged."""
    yield shared
    assert status(shared.talk(post(GOOD))) == 200
    assert "Traceback" not in shared.output()


def post(body: bytes, headers: bytes = b"") -> bytes:
    auth = b"Authorization: Bearer key\r\nConnection: close\r\n"
    return POST + auth + b"Content-Length: %d\r\n" % len(body) + headers + b"\r\n" + body


def status(answer: bytes) -> int:
    match = re.match(rb"HTTP/1.1 (\d+) ", answer)
    assert match, answer
    return int(match[1])


def assert_error(answer: bytes, expected: int) -> None:
    assert status(answer) == expected
    assert answer.partition(b"\r\n\r\n")[2].startswith(b'{"error":{"message":')


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x/a?\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + b"bad header\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + b"X-Request-Id: a\x00b\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        POST + b"Authorization: Bearer key\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_malformed_request_is_a_400(server: ServerProcess, sent: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(1)
        assert_error(read_all(connection), 400)


@pytest.mark.parametrize(
    "path", [b"/v1/../metrics", b"//v1/models", b"/v1/models%00", b"/metrics?"]
)
def test_crooked_paths_do_not_pass_the_key(server: ServerProcess, path: bytes) -> None:
    sent = b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    assert_error(server.talk(sent), 401)


def test_request_id_cannot_split_the_response(server: ServerProcess) -> None:
    sent = b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
    answer = server.talk(sent + b"X-Request-Id: a\r\nX-Evil: 1\r\n\r\n")
    assert b"X-Evil" not in answer
    assert b"x-request-id: a\r\n" in answer.lower()


@pytest.mark.parametrize("size", [40_000, 1_000_000])
@pytest.mark.parametrize("name", [b"X-Long", b"Authorization", b"X-Request-Id"])
def test_oversized_headers_are_a_431(server: ServerProcess, name: bytes, size: int) -> None:
    head = b"GET /health HTTP/1.1\r\n" + HOST + name + b": " + b"x" * size + b"\r\n\r\n"
    with server.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head)
        assert_error(read_all(connection), 431)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: loc",
        POST + b"Authorization: Bearer key\r\nContent-Length: 100\r\n\r\n{",
        POST + b"Authorization: Bearer key\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{",
    ],
)
def test_unfinished_request_is_a_408(server: ServerProcess, sent: bytes) -> None:
    started = time.monotonic()
    assert_error(server.talk(sent), 408)
    assert 0.4 < time.monotonic() - started < 3


@pytest.mark.parametrize("before", [0, 20, len(post(b"")), len(post(b"")) + 10])
def test_request_that_came_while_the_process_was_stopped_is_answered(
    server: ServerProcess, before: int
) -> None:
    """Whole, or but for some bytes of its head or body, that came before."""
    sent = post(GOOD)
    with server.connect() as connection:
        connection.sendall(sent[:before])
        time.sleep(0.1)  # it is accepted, and its clock runs
        server.signal(signal.SIGSTOP)
        connection.sendall(sent[before:])
        time.sleep(0.6)
        server.signal(signal.SIGCONT)
        assert status(read_all(connection)) == 200


def test_second_request_of_a_connection_has_a_deadline_too(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come apart
            answer += connection.recv(65536)
        assert status(answer) == 200
        connection.sendall(b"GET /hea")
        assert_error(read_all(connection), 408)


def test_silent_connection_is_closed(server: ServerProcess) -> None:
    with server.connect() as connection:
        assert read_all(connection) == b""


def test_drip_of_a_body_does_not_hold_a_connection(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(POST + b"Authorization: Bearer key\r\nContent-Length: 1000\r\n\r\n")
        started = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - started < 3:
                connection.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - started < 2


def test_too_large_body_is_answered_before_the_close(server: ServerProcess) -> None:
    assert_error(server.talk(post(b" " * 1_000_000)), 413)
    chunks = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = POST + b"Authorization: Bearer key\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert_error(server.talk(head + chunks * 16 + b"0\r\n\r\n"), 413)


def test_expect_continue_is_refused_without_the_body(server: ServerProcess) -> None:
    head = POST + b"Authorization: Bearer key\r\nExpect: 100-continue\r\n"
    assert_error(server.talk(head + b"Content-Length: 1000000\r\n\r\n"), 413)


def test_half_open_connections_do_no_harm(server: ServerProcess) -> None:
    connections = [server.connect() for _ in range(200)]
    for connection in connections:
        connection.sendall(b"POST /v1")
    started = time.monotonic()
    assert status(server.talk(post(GOOD))) == 200
    assert time.monotonic() - started < 1
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_a_connection_outlives_the_pools_of_clients(server: ServerProcess) -> None:
    """None is closed under a request because client and server tire of it at the same moment."""
    address = urlsplit(server.url)
    with closing(HTTPConnection(address.hostname or "", address.port)) as connection:
        connection.connect()
        used = connection.sock
        for pause in (0, 6, 61):
            time.sleep(pause)
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            assert connection.sock is used
