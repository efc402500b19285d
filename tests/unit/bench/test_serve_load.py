"""When a load sends, whom it holds back, and what is left when it is stopped."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from nsa_serve.bench.serve.load import Load
from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.records import RequestRecord
from nsa_serve.bench.serve.statistics import peak_concurrency

Send = Callable[[Sample, RequestRecord], Awaitable[None]]


def _samples(count: int) -> list[Sample]:
    return [Sample(prompt="x", max_tokens=1 + i) for i in range(count)]


def _lasting(seconds: float) -> Send:
    async def send(sample: Sample, record: RequestRecord) -> None:
        started = time.perf_counter()
        record.status = "cancelled"
        try:
            await asyncio.sleep(seconds)
            record.status = "ok"
        finally:
            record.end = time.perf_counter() - started

    return send


def test_requests_are_sent_when_they_are_due() -> None:
    planned = [0.0, 0.05, 0.1, 0.1]

    async def run() -> list[RequestRecord]:
        return await Load(_samples(4), planned, _lasting(0.5)).run()

    records = asyncio.run(run())
    assert [record.planned for record in records] == planned
    assert [record.max_tokens for record in records] == [1, 2, 3, 4]
    for record in records:
        assert record.sent is not None
        assert record.planned - 0.002 <= record.due <= record.sent < record.planned + 0.2
    assert peak_concurrency(records) == 4


def test_those_over_the_bound_wait_in_order() -> None:
    order: list[int] = []

    async def run() -> list[RequestRecord]:
        load = Load(
            _samples(6),
            [0.0] * 6,
            _lasting(0.05),
            max_concurrency=2,
            on_start=lambda record: order.append(record.index),
        )
        return await load.run()

    records = asyncio.run(run())
    assert order == [0, 1, 2, 3, 4, 5]
    assert peak_concurrency(records) == 2
    assert records[0].queued < 0.04
    assert records[5].queued > 0.09
    assert all(record.late < 0.05 for record in records)


@pytest.mark.parametrize("by_time", [False, True])
def test_a_stopped_load_tells_what_ended_what_ran_and_what_was_not_sent(by_time: bool) -> None:
    ended: list[int] = []

    async def run() -> tuple[list[RequestRecord], float]:
        load = Load(
            _samples(5),
            [0.0, 0.0, 0.0, 0.0, 60.0],
            lambda sample, record: _lasting(0.02 if record.index == 0 else 60.0)(sample, record),
            max_concurrency=2,
            max_seconds=0.3 if by_time else None,
            on_end=lambda record: ended.append(record.index),
        )
        if not by_time:
            asyncio.get_running_loop().call_later(0.3, load.stop)
        return await load.run(), load.duration

    records, duration = asyncio.run(run())
    assert [r.status for r in records] == ["ok", "cancelled", "cancelled", "not sent", "not sent"]
    assert sorted(ended) == [0, 1, 2]
    assert 0.25 < duration < 5.0


def test_a_mistake_of_ours_is_raised() -> None:
    async def send(sample: Sample, record: RequestRecord) -> None:
        raise KeyError("a mistake")

    async def run() -> None:
        await Load(_samples(2), [0.0, 0.0], send).run()

    with pytest.raises(ExceptionGroup):
        asyncio.run(run())
