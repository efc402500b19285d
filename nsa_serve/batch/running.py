"""Answers the lines of one file into another, as many at once as the engine holds."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from nsa_serve.batch import results
from nsa_serve.batch.reading import InputFile, Line
from nsa_serve.batch.requests import ENDPOINTS, BatchRequest, LineFault, parse
from nsa_serve.batch.results import Answer, Result
from nsa_serve.batch.writing import OutputFile
from nsa_serve.errors import BatchError

MAX_ATTEMPTS = 3
"""Of a request in the middle of which the engine ends."""
_SECONDS_BETWEEN_SYNCS = 1.0
_SECONDS_UNTIL_PLACES = 0.05
_SECONDS_UNTIL_LINES = 0.02
"""Of a pipe, between two looks."""
_TRY_AGAIN = (429, 503)


class Api(Protocol):
    """What answers a request as the HTTP API does."""

    @property
    def capacity(self) -> int:
        """Continuations to have in flight at once."""

    async def ready(self) -> None:
        """Wait until a request can be sent."""

    async def answer(self, request: BatchRequest) -> Answer:
        """Status and body for a request, whatever it holds."""


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    num_requests: int = 0
    """Lines read that are not blank."""
    num_skipped: int = 0
    """Of those, written by an earlier run."""
    num_completed: int = 0
    num_failed: int = 0
    first_failure: str = ""
    """Of this run: which line, and why."""
    num_tokens: int = 0
    """Made by this run."""
    num_bytes: int = 0
    """Of the input: read, and answered."""


class BatchRun:
    """One pass over the input; `run` may be cancelled at any time, and done again."""

    def __init__(
        self,
        source: InputFile,
        target: OutputFile,
        api: Api,
        *,
        created: int,
        endpoints: Collection[str] = ENDPOINTS,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.progress = Progress()
        self._source, self._target, self._api = source, target, api
        self._created, self._endpoints, self._report = created, endpoints, report
        self._seen: set[str] = set()
        self._in_flight = 0
        self._freed = asyncio.Event()
        self._second_attempts = asyncio.Lock()

    async def run(self) -> Progress:
        """Answer every line that the output does not have; raises `BatchError`."""
        syncing = asyncio.create_task(self._keep_synced())
        try:
            await self._answer_all()
        except* BatchError as group:
            raise _first(group) from None
        finally:
            syncing.cancel()
            with suppress(asyncio.CancelledError):
                await syncing
            await asyncio.to_thread(self._target.sync)
        if not self.progress.num_requests:
            raise BatchError(f"{self._source.path} holds no request")
        return self.progress

    async def _answer_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            lines = self._source.lines()
            while (line := await self._next(lines)) is not None:
                self.progress.num_requests += 1
                request = self._take(line)
                if request is None:
                    await asyncio.sleep(0)  # a cancellation, and others, must get their turn
                    continue
                places = min(request.num_sequences, self._api.capacity)
                await self._places(places)
                tasks.create_task(self._serve(request, places))

    async def _next(self, lines: Iterator[Line]) -> Line | None:
        """The next line, once it is there; answers go on meanwhile."""
        while self._source.must_wait:
            await asyncio.sleep(_SECONDS_UNTIL_LINES)
        return next(lines, None)

    def _take(self, line: Line) -> BatchRequest | None:
        """The request of a line, unless that is answered already or can be at once."""
        found = self._read(line)
        if found.digest in self._target.written:
            self.progress.num_skipped += 1
            self._advance(line)
            return None
        if isinstance(found, BatchRequest):
            return found
        self._write(results.of_fault(found), line)
        return None

    def _read(self, line: Line) -> BatchRequest | LineFault:
        found: BatchRequest | LineFault
        try:
            found = parse(line, self._endpoints)
        except LineFault as fault:
            found = fault
        if found.custom_id is None:
            return found
        if found.digest in self._seen:
            text = f"custom_id {found.custom_id!r} is that of an earlier line"
            return LineFault(line, "duplicate_custom_id", text, "custom_id")
        self._seen.add(found.digest)
        return found

    async def _places(self, num_places: int) -> None:
        """Wait until the engine has room and is there."""
        while self._in_flight and self._in_flight + num_places > self._api.capacity:
            self._freed.clear()
            await self._freed.wait()
        await self._api.ready()
        self._in_flight += num_places

    async def _serve(self, request: BatchRequest, places: int) -> None:
        try:
            answer = await self._answer(request)
            self._write(results.of_answer(request, answer, self._created), request.line)
        finally:
            self._in_flight -= places
            self._freed.set()

    async def _answer(self, request: BatchRequest) -> Answer:
        """The answer; where the engine ended in the middle, that of a later attempt.

        Those are made one at a time: a request that ends the engine then has no companions that
        have had a bad attempt before, and only itself comes to the last one.
        """
        answer = await self._attempt(request)
        if answer.status not in _TRY_AGAIN:
            return answer
        async with self._second_attempts:
            for _ in range(1, MAX_ATTEMPTS):
                await self._api.ready()
                answer = await self._attempt(request)
                if answer.status not in _TRY_AGAIN:
                    break
        return answer

    async def _attempt(self, request: BatchRequest) -> Answer:
        """The first answer that is not about a queue that others filled."""
        while (answer := await self._api.answer(request)).status == 429:
            await asyncio.sleep(answer.retry_after or _SECONDS_UNTIL_PLACES)
        return answer

    def _write(self, result: Result, line: Line) -> None:
        self._target.append(result.data)
        self.progress.num_tokens += result.num_tokens
        if result.ok:
            self.progress.num_completed += 1
        else:
            self.progress.num_failed += 1
            self.progress.first_failure = (
                self.progress.first_failure or f"line {line.number}: {result.cause}"
            )
        self._advance(line)

    def _advance(self, line: Line) -> None:
        self.progress.num_bytes += line.num_bytes
        self._report(self.progress)

    async def _keep_synced(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_SYNCS)
            await asyncio.to_thread(self._target.sync)


def _first(group: BaseExceptionGroup[BatchError]) -> BatchError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BatchError)
    return error


class Throughput:
    """Tokens per second since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    def of(self, num_tokens: int) -> float:
        """The mean rate of this many tokens."""
        return num_tokens / max(self.seconds, 1e-9)
