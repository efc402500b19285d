"""Compilation as it happens, which is once: numba keeps what it compiled on disk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event


class _Listener(event.Listener):  # type: ignore[misc]  # numba has no types
    """Calls back when the first of many functions begins to be compiled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callbacks = [callback]

    def on_start(self, event: Any) -> None:
        """A function that is not on disk."""
        if self._callbacks:
            self._callbacks.pop()()

    def on_end(self, event: Any) -> None:
        """Of no interest."""


@contextmanager
def telling(callback: Callable[[], None]) -> Iterator[None]:
    """Around what may compile: one call, before the first compilation, if there is any."""
    with event.install_listener("numba:compile", _Listener(callback)):
        yield
