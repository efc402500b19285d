"""Looks into an engine from the client's side: how far requests are, what their layers select."""

import asyncio
from collections.abc import Callable

import msgspec

from nsa_serve.engine.in_flight import InFlight
from nsa_serve.engine.messages import (
    ReportProgress,
    Selection,
    SequenceProgress,
    StepOutputs,
    ToCore,
    WatchSequence,
)

_SECONDS_FOR_PROGRESS = 0.5


class RequestProgress(msgspec.Struct, frozen=True):
    """How far one continuation of a request is."""

    request_id: str
    index: int
    progress: SequenceProgress


class Watching:
    """Who waits for which look. Asks the core only for what somebody waits for."""

    def __init__(self, in_flight: InFlight, send: Callable[[ToCore], None]) -> None:
        self._in_flight = in_flight
        self._send = send
        self._progress: asyncio.Future[list[SequenceProgress]] | None = None
        self._selections: dict[int, asyncio.Future[Selection]] = {}

    async def progress(self) -> list[RequestProgress]:
        """Of everything in flight. Raises TimeoutError if no step comes to its end within half a
        second; what it then tells is the answer to the next call."""
        if self._in_flight.num_unfinished == 0:
            return []
        if self._progress is None:
            self._progress = asyncio.get_running_loop().create_future()
            self._send(ReportProgress())
        future = self._progress
        async with asyncio.timeout(_SECONDS_FOR_PROGRESS):
            found = await asyncio.shield(future)
        if self._progress is future:
            self._progress = None
        places = ((self._in_flight.place_of(each.sequence_id), each) for each in found)
        return [RequestProgress(*place, each) for place, each in places if place is not None]

    async def selection(self, request_id: str, seconds: float) -> Selection | None:
        """What the next decode step of a request's first unfinished continuation selects.

        None if no request of this id is in flight; raises TimeoutError if it does not decode, or
        comes to its end, within `seconds`.
        """
        sequence_id = self._in_flight.first_unfinished(request_id)
        if sequence_id is None:
            return None
        future = self._selections.get(sequence_id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._selections[sequence_id] = future
            self._send(WatchSequence(sequence_id))
        try:
            async with asyncio.timeout(seconds):
                found = await asyncio.shield(future)
        finally:
            if self._selections.get(sequence_id) is future:
                del self._selections[sequence_id]
        return found if found.unavailable is None or self._is_in_flight(sequence_id) else None

    def _is_in_flight(self, sequence_id: int) -> bool:
        return self._in_flight.place_of(sequence_id) is not None

    def forget(self) -> None:
        """Expect nothing of a core that is gone."""
        self._progress = None
        self._selections.clear()

    def push(self, step: StepOutputs) -> None:
        """Take in what a step told."""
        if step.progress is not None and self._progress is not None and not self._progress.done():
            self._progress.set_result(step.progress)
        for selection in step.selections or ():
            self._tell(selection)
        if self._selections:
            for output in step.outputs:
                if output.finish_reason is not None:
                    self._tell(Selection(output.sequence_id, unavailable="it has ended"))

    def _tell(self, selection: Selection) -> None:
        future = self._selections.pop(selection.sequence_id, None)
        if future is not None:
            future.set_result(selection)
