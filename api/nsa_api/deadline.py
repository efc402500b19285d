"""A request's deadline: when it passes, the engine ends the request, queued or running."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from fastapi import Request

from nsa_api.errors import bad_request
from nsa_api.settings import ApiSettings
from nsa_serve.errors import DeadlineError

HEADER = "X-Request-Timeout"
_SECONDS_BETWEEN_TRIES = 0.05
"""A request whose prompt is still being made tokens is not in the engine's hands yet."""


class Deadline:
    """Seconds from now on that a request may take; None sets no bound."""

    def __init__(self, seconds: float | None) -> None:
        self.passed = False
        self._seconds = seconds
        self._started = asyncio.get_running_loop().time()

    @classmethod
    def of(cls, request: Request, settings: ApiSettings) -> "Deadline":
        """What the server allows, or less if the client's header says so; 400 if it is no time."""
        if getattr(request.state, "may_wait", False):
            return cls(None)
        allowed = settings.request_timeout
        given = request.headers.get(HEADER)
        if given is None:
            return cls(allowed)
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise bad_request(f"{HEADER} must be a positive number of seconds", HEADER)
        return cls(seconds if allowed is None else min(seconds, allowed))

    @contextmanager
    def kept(self, end: Callable[[], Awaitable[None]]) -> Iterator[None]:
        """Within this, `end` is called once the time is over, and again until we leave."""
        if self._seconds is None:
            yield
            return
        task = asyncio.ensure_future(self._watch(self._seconds, end))
        try:
            yield
        finally:
            task.cancel()

    def error(self) -> DeadlineError:
        """What a request that is ended by it fails with."""
        return DeadlineError(f"The request was not done within {self._seconds:g} s")

    async def _watch(self, seconds: float, end: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(self._started + seconds - asyncio.get_running_loop().time())
        self.passed = True
        while True:
            await end()
            await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
