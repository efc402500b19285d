"""Requests to a server process, and streams that run in threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.support.http_server import ServerProcess

PATH = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "stand-in", "prompt": "x", "max_tokens": 20, **fields}


def error_code(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


class Streams:
    """Streams that run in threads until they end, or until their client leaves."""

    def __init__(self, server: ServerProcess, count: int, **fields: Any) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._begun = threading.Semaphore(0)
        self._leave = threading.Event()
        self._texts = [self._pool.submit(self._read, server, body(**fields)) for _ in range(count)]
        for _ in range(count):
            assert self._begun.acquire(timeout=20)

    def _read(self, server: ServerProcess, request: dict[str, Any]) -> str:
        text = ""
        with server.http.stream("POST", PATH, json={**request, "stream": True}) as answer:
            for piece in answer.iter_text():
                if not text:
                    self._begun.release()
                text += piece
                if self._leave.is_set():
                    break
        return text

    def leave(self) -> None:
        self._leave.set()
        self._pool.shutdown()

    def results(self) -> list[str]:
        return [text.result(timeout=20) for text in self._texts]
