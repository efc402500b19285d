"""Sequences that somebody looks at."""

import logging
from collections.abc import Callable, Sequence

from nsa_scheduler.output import ScheduledSequence
from nsa_serve.engine.messages import Selection

logger = logging.getLogger(__name__)


class Watched:
    """Of whom the next decode step's selection is wanted, once."""

    def __init__(self, look: Callable[[ScheduledSequence], Selection]) -> None:
        """`look` finds out what a decode step selects, and changes nothing."""
        self._look = look
        self._sequence_ids: set[int] = set()

    def add(self, sequence_id: int) -> None:
        """Look at its next decode step."""
        self._sequence_ids.add(sequence_id)

    def discard(self, sequence_id: int) -> None:
        """It has ended."""
        self._sequence_ids.discard(sequence_id)

    def look(self, items: Sequence[ScheduledSequence]) -> tuple[Selection, ...]:
        """What those of a step's items select that are watched and decode."""
        if not self._sequence_ids:
            return ()
        due = [
            item
            for item in items
            if item.sequence.sequence_id in self._sequence_ids
            and item.num_tokens == 1
            and item.samples
        ]
        self._sequence_ids.difference_update(item.sequence.sequence_id for item in due)
        return tuple(map(self._look_at, due))

    def _look_at(self, item: ScheduledSequence) -> Selection:
        try:
            return self._look(item)
        except Exception as error:  # a look must not end what it looks at
            logger.error("a selection could not be recorded", exc_info=error)
            return Selection(item.sequence.sequence_id, unavailable="it could not be recorded")
