"""An engine process over the stand-in, and an event loop to use it from plain tests."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.engine.stand_in import OPTIONS_VARIABLE

T = TypeVar("T")


class EngineHandle:
    """A running engine; `run` drives its event loop."""

    def __init__(self, runner: asyncio.Runner, engine: AsyncEngine) -> None:
        self._runner = runner
        self.engine = engine

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self._runner.run(work)


@contextmanager
def running_engine(
    config: EngineConfig | None = None, **options: float | int | str | bool
) -> Iterator[EngineHandle]:
    """Start an engine whose stand-in has these options; end it and its process at the end."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv(OPTIONS_VARIABLE, json.dumps(options))
        engine = runner.run(AsyncEngine.start(config or EngineConfig(runner="stand-in")))
        try:
            yield EngineHandle(runner, engine)
        finally:
            runner.run(engine.shutdown())


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait for a condition; fails if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        await asyncio.sleep(0.005)


def process_exists(pid: int) -> bool:
    """Whether a process of this id runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all threads, user and system."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
