"""A target that behaves as it is told: an OpenAI-like server of a few lines, in a thread."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Answer = tuple[int, str, list[bytes]]
"""A status, a content type, and the pieces of a body."""

EVENTS = "text/event-stream"
DONE = b"data: [DONE]\n\n"


class OddTarget(ThreadingHTTPServer):
    """Answers POSTs by `respond`, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, respond: Callable[[str, Body], Answer], models: list[str] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond, self.models = respond, models
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: OddTarget

    def do_GET(self) -> None:
        if self.server.models is None:
            self._send(404, "application/json", [b"{}"])
            return
        cards = {"data": [{"id": name} for name in self.server.models]}
        self._send(200, "application/json", [json.dumps(cards).encode()])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        self._send(*self.server.respond(self.path, body))

    def _send(self, status: int, kind: str, pieces: list[bytes]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def odd_target(
    respond: Callable[[str, Body], Answer], models: list[str] | None = None
) -> Iterator[OddTarget]:
    """Serve until the block ends; without `models` there is no list of models."""
    server = OddTarget(respond, models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(**chunk: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
