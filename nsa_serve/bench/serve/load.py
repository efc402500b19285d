"""Sends requests when they are due, and keeps their records."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.records import RequestRecord

Send = Callable[[Sample, RequestRecord], Awaitable[None]]
OnChange = Callable[[RequestRecord], None]


class Load:
    """One load test: samples, the times at which they are due, and a bound on those in flight.

    The bound is kept in the order of arrival, so nobody overtakes.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        planned: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
        send: Send,
        *,
        max_concurrency: int | None = None,
        max_seconds: float | None = None,
        on_start: OnChange | None = None,
        on_end: OnChange | None = None,
    ) -> None:
        self.records = [
            RequestRecord(
                index=index,
                planned=float(due),
                max_tokens=sample.max_tokens,
                prompt_tokens=sample.prompt_tokens,
                needle=sample.needle,
            )
            for index, (sample, due) in enumerate(zip(samples, planned, strict=True))
        ]
        self.duration = 0.0
        """Seconds until the last request ended."""
        self._samples = samples
        self._send = send
        self._places = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._max_seconds = max_seconds
        self._on_start, self._on_end = on_start, on_end
        self._stopped = asyncio.Event()
        self._started = 0.0

    def stop(self) -> None:
        """Send no more, and cancel what is in flight."""
        self._stopped.set()

    async def run(self) -> list[RequestRecord]:
        """Returns once every request ended, was cancelled, or will not be sent."""
        self._started = time.perf_counter()
        work = asyncio.create_task(self._send_all())
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait(
            (work, stopped), timeout=self._max_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        stopped.cancel()
        work.cancel()
        await asyncio.wait((work,))
        self.duration = self._now()
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error
        return self.records

    def _now(self) -> float:
        return time.perf_counter() - self._started

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for sample, record in zip(self._samples, self.records, strict=True):
                if (delay := record.planned - self._now()) > 0:
                    await asyncio.sleep(delay)
                group.create_task(self._one(sample, record))

    async def _one(self, sample: Sample, record: RequestRecord) -> None:
        record.due = self._now()
        if self._places is None:
            await self._timed(sample, record)
        else:
            async with self._places:
                await self._timed(sample, record)

    async def _timed(self, sample: Sample, record: RequestRecord) -> None:
        record.sent = self._now()
        if self._on_start is not None:
            self._on_start(record)
        try:
            await self._send(sample, record)
        finally:
            if self._on_end is not None:
                self._on_end(record)
