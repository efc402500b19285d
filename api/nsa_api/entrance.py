"""The way into the queue: who finds it full is refused before anything is made of the body.

A place in the queue is reserved late, when a request is validated. In a burst many would get that
far beside each other, each at the speed of all, to find no place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from nsa_api.access import current_exchange
from nsa_api.engine import Engine
from nsa_serve.errors import QueueFullError


class Entrance:
    """Counts the requests that are between the door and their places."""

    def __init__(self) -> None:
        self.num_entering = 0

    @contextmanager
    def entering(self, engine: Engine) -> Iterator[None]:
        """Handle a request in here; raises QueueFullError if those before it fill the queue."""
        try:
            engine.check_room(self.num_entering)
        except QueueFullError as error:
            if (exchange := current_exchange()) is not None:
                exchange.fields["ended_by"] = type(error).__name__
            raise
        visit = _Visit(self)
        token = _visit.set(visit)
        try:
            yield
        finally:
            _visit.reset(token)
            visit.end()


class _Visit:
    """One request on its way in."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance: Entrance | None = entrance
        entrance.num_entering += 1

    def end(self) -> None:
        if self._entrance is not None:
            self._entrance.num_entering -= 1
            self._entrance = None


_visit: ContextVar[_Visit | None] = ContextVar("visit", default=None)


def about_to_reserve() -> None:
    """To be called right before the engine is asked for the request's places."""
    if (visit := _visit.get()) is not None:
        visit.end()
