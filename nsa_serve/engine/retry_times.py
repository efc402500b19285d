"""When refused clients should come back: not all at once, but as places come free."""

import math
import time
from collections.abc import Callable

SHORTEST_WAIT = 1.0
LONGEST_WAIT = 60.0
"""Seconds; the openai package ignores a longer one, in later versions only one above 120."""

_MEMORY = 20.0
"""Seconds of full work after which a finish counts for 1/e of a new one."""
_START_TURNOVER = 2.0
"""Seconds in which all places are taken to come free, before anything was seen."""
_START_SECONDS = 1.0
"""How much that guess weighs beside what is seen."""
_PACE = 0.9
"""Of the places that come free, the part that is promised: newcomers take some."""
_MISJUDGED = 0.8
"""A rate below this part of the one that was promised means that too many were told to come."""
_SLOWEST = 1.0 / LONGEST_WAIT


class RetryTimes:
    """A queue of moments, one for each refused client, as far apart as places come free.

    Nothing is kept for anybody, for who comes back is not known again. A moment that has passed
    is out of the queue.
    """

    def __init__(self, num_places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = _START_SECONDS
        self._num_finished = _START_SECONDS * num_places / _START_TURNOVER
        self._seen = clock()
        self._last = -math.inf
        """The latest moment that was told."""
        self._promised = 0.0
        """The rate by which it was told."""

    @property
    def rate(self) -> float:
        """Places that come free a second while the engine is full."""
        return max(self._num_finished / self._seconds, _SLOWEST)

    def observe(self, *, full: bool, num_finished: int = 0) -> None:
        """So many finish now; until now, from the last call on, the engine was full or was not.

        What finishes in an engine that is not full tells how much was asked for, not how much it
        can do, and is not counted.
        """
        now = self._clock()
        if full:
            kept = math.exp((self._seen - now) / _MEMORY)
            self._seconds = self._seconds * kept + now - self._seen
            self._num_finished = self._num_finished * kept + num_finished
        self._seen = now

    def next(self, num_waiting: int, num_places: int) -> float:
        """Seconds after which to come back for so many places.

        The first who is refused comes when those waiting now have begun, each other one behind
        the one before it.
        """
        now, rate = self._clock(), self.rate
        first = max(SHORTEST_WAIT, num_waiting / rate)
        behind = self._last - now + num_places / (_PACE * rate)
        if first > behind or rate > self._promised:
            self._promised = rate
        elif rate < _MISJUDGED * self._promised:
            behind += num_waiting / rate  # those before will find, and leave, a full queue
            self._promised = rate
        wait = min(max(first, behind), LONGEST_WAIT)
        self._last = now + wait
        return wait
