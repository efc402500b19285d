"""Threads that run one compiled function together."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

_Task = tuple[Callable[..., None], tuple[Any, ...]] | None


class Team:
    """`size` threads, the caller's among them; the others sleep between calls and end with the
    team."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._task: list[_Task] = [None]
        self._starts = [threading.Semaphore(0) for _ in range(1, size)]
        for member, start in enumerate(self._starts, 1):
            threading.Thread(
                target=_serve, args=(member, size, start, self._task), name=f"team-{member}",
                daemon=True,
            ).start()  # fmt: skip
        weakref.finalize(self, _dismiss, self._task, self._starts)

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """function(member, size, *args) in every thread. It releases the interpreter and ends with
        a barrier of its own, so that nobody is still at work when the caller's call returns."""
        self._task[0] = function, args
        for start in self._starts:
            start.release()
        function(0, self.size, *args)


def _serve(member: int, size: int, start: threading.Semaphore, task: list[_Task]) -> None:
    while True:
        start.acquire()
        if task[0] is None:
            return
        function, args = task[0]
        function(member, size, *args)
        del function, args


def _dismiss(task: list[_Task], starts: list[threading.Semaphore]) -> None:
    task[0] = None
    for start in starts:
        start.release()
