"""Every figure on timings made by hand."""

from typing import Any

import pytest

from nsa_serve.bench.serve.notes import notes_on
from nsa_serve.bench.serve.options import LoadShape
from nsa_serve.bench.serve.records import (
    Arrival,
    Needle,
    RequestRecord,
    inter_token_latencies,
    spread_tokens,
)
from nsa_serve.bench.serve.statistics import (
    errors_of,
    is_good,
    peak_concurrency,
    peak_rate,
    spread,
    summarize,
    tokens_by_second,
    values_of,
)


def _record(index: int = 0, **fields: Any) -> RequestRecord:
    """Sent at 1 s; tokens after 0.5, 0.7 and, two together, 1.1 s."""
    defaults: dict[str, Any] = {
        "status": "ok",
        "planned": 0.0,
        "due": 0.25,
        "sent": 1.0,
        "end": 1.1,
        "prompt_tokens": 10,
        "output_tokens": 4,
        "max_tokens": 4,
        "arrivals": [Arrival(0.5, 1), Arrival(0.7, 1), Arrival(1.1, 2)],
        "token_counts": "usage",
    }
    return RequestRecord(index=index, **(defaults | fields))


def test_times_of_a_request() -> None:
    record = _record()
    assert record.ttft == 0.5
    assert record.e2el == 1.1
    assert record.tpot == pytest.approx((1.1 - 0.5) / 3)
    assert record.itls == pytest.approx([0.2, 0.2, 0.2])
    assert record.gaps == pytest.approx([0.2, 0.4])
    assert (record.queued, record.late) == (0.75, 0.25)


def test_an_answer_of_one_token_has_no_pace() -> None:
    record = _record(output_tokens=1, arrivals=[Arrival(0.5, 1)], end=0.5)
    assert (record.ttft, record.tpot, record.itls) == (0.5, None, [])


def test_a_request_without_tokens_has_no_times() -> None:
    record = RequestRecord(index=0)
    assert (record.ttft, record.tpot, record.e2el) == (None, None, None)
    assert (record.queued, record.itls, record.gaps) == (0.0, [], [])


def test_tokens_beside_the_first_have_no_latency() -> None:
    assert inter_token_latencies([Arrival(1.0, 5), Arrival(4.0, 3)]) == [1.0, 1.0, 1.0]


def test_latencies_of_tokens_add_up_to_the_time_between_first_and_last() -> None:
    arrivals = [Arrival(0.3, 1), Arrival(0.4, 7), Arrival(0.9, 2), Arrival(1.0, 1)]
    latencies = inter_token_latencies(arrivals)
    assert len(latencies) == 10
    assert sum(latencies) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("times", "num_tokens", "expected"),
    [
        ([1.0, 2.0, 3.0], 3, [1, 1, 1]),
        ([1.0, 2.0, 3.0], 8, [3, 3, 2]),
        ([1.0, 2.0, 3.0, 4.0], 6, [2, 1, 2, 1]),
        ([1.0], 5, [5]),
        ([], 5, []),
        ([1.0], 0, []),
    ],
)
def test_tokens_are_spread_evenly(times: list[float], num_tokens: int, expected: list[int]) -> None:
    found = spread_tokens(times, num_tokens)
    assert [arrival.num_tokens for arrival in found] == expected
    assert [arrival.time for arrival in found] == times[: len(expected)]


def test_more_arrivals_than_tokens_keep_the_last_time() -> None:
    assert spread_tokens([1.0, 2.0, 3.0], 2) == [Arrival(1.0, 1), Arrival(3.0, 1)]


def test_a_summary_counts_what_succeeded() -> None:
    records = [
        _record(0),
        _record(1, prompt_tokens=30, output_tokens=2, cached_tokens=8),
        _record(2, status="failed", error="HTTP 500", output_tokens=99),
        _record(3, status="cancelled"),
        RequestRecord(index=4),
    ]
    figures = summarize(records, 4.0, {})
    counts = ("completed", "failed", "cancelled", "not_sent", "ended_early")
    assert [figures[name] for name in counts] == [2, 1, 1, 1, 1]
    totals = ("total_input_tokens", "total_output_tokens", "total_cached_tokens")
    assert [figures[name] for name in totals] == [40, 6, 8]
    rates = ("request_throughput", "output_throughput", "total_token_throughput")
    assert [figures[name] for name in rates] == [0.5, 1.5, 11.5]
    assert figures["request_goodput"] is None
    assert figures["mean_ttft_ms"] == pytest.approx(500.0)
    assert figures["mean_tpot_ms"] == pytest.approx((200.0 + 600.0) / 2)
    assert figures["median_queue_ms"] == pytest.approx(750.0)
    assert figures["p99_lateness_ms"] == pytest.approx(250.0)
    assert figures["median_ttft_arrival_ms"] == pytest.approx(1500.0)


def test_nothing_that_succeeded_is_no_division_by_zero() -> None:
    figures = summarize([_record(status="failed", arrivals=[])], 0.0, {"ttft": 1.0})
    assert figures["request_throughput"] == 0.0
    assert figures["request_goodput"] == 0.0
    assert figures["p99_itl_ms"] == 0.0


def test_a_spread_has_the_names_and_values_that_numpy_gives() -> None:
    found = spread("ttft", [0.001 * i for i in range(101)])
    assert found == pytest.approx(
        {
            "mean_ttft_ms": 50.0,
            "median_ttft_ms": 50.0,
            "std_ttft_ms": 850.0**0.5,
            "p50_ttft_ms": 50.0,
            "p90_ttft_ms": 90.0,
            "p95_ttft_ms": 95.0,
            "p99_ttft_ms": 99.0,
        }
    )


def test_values_have_one_latency_a_token_and_one_gap_an_arrival() -> None:
    values = values_of([_record(), _record(1)])
    assert [len(values[name]) for name in ("ttft", "tpot", "itl", "icl")] == [2, 2, 6, 4]


@pytest.mark.parametrize(
    ("goodput", "good"),
    [
        ({}, True),
        ({"ttft": 500.0, "tpot": 201.0, "itl": 201.0, "e2el": 1100.0}, True),
        ({"ttft": 499.0}, False),
        ({"ttft": 500.0, "tpot": 199.0}, False),
        ({"itl": 199.0}, False),
        ({"e2el": 1099.0}, False),
    ],
)
def test_a_good_request_keeps_within_every_bound(goodput: Any, good: bool) -> None:
    assert is_good(_record(), goodput) is good
    assert not is_good(_record(status="failed"), goodput)


def test_goodput_is_a_share_of_all_requests() -> None:
    slow = _record(1, arrivals=[Arrival(0.9, 4)])
    failed = _record(2, status="failed")
    figures = summarize([_record(), slow, failed, _record(3)], 2.0, {"ttft": 600.0})
    assert (figures["request_goodput"], figures["good_share"]) == (1.0, 0.5)


def test_peak_concurrency_is_exact() -> None:
    spans = [(0.0, 2.0), (1.0, 2.0), (1.5, 0.4), (2.0, 1.0), (9.0, 1.0)]
    records = [_record(sent=start, end=length) for start, length in spans]
    assert peak_concurrency(records) == 3
    touching = [_record(sent=0.0, end=1.0), _record(sent=1.0, end=1.0)]
    assert peak_concurrency(touching) == 1
    assert peak_concurrency([RequestRecord(index=0)]) == 0


def test_tokens_are_counted_by_the_clock_of_the_load() -> None:
    assert tokens_by_second([_record()]) == [0, 2, 2]
    assert tokens_by_second([_record(), _record(sent=2.0)], 0.5) == [0, 0, 0, 2, 2, 2, 2]
    assert peak_rate([_record(), _record(1)]) == 4.0
    assert peak_rate([]) == 0.0


def test_errors_are_counted_most_frequent_first() -> None:
    texts = ["a", "b", "b", "c", "b", "c"]
    records = [_record(status="failed", error=text) for text in texts]
    assert errors_of([*records, _record()]) == [("b", 3), ("c", 2), ("a", 1)]


def test_a_needle_is_found_whatever_stands_between_its_digits() -> None:
    needle = Needle(length=1, depth=0.0, answer="123456")
    assert _record(needle=needle, text=" is 123,456.").found is True
    assert _record(needle=needle, text=" is 123457.").found is False
    assert _record(needle=needle, text="123456", status="failed").found is None
    assert _record(text="123456").found is None


def _notes(shape: LoadShape, *records: RequestRecord, data: str = "random") -> str:
    return " ".join(notes_on(shape, records, summarize(records, 3.0, {}), data))


def test_notes_say_what_a_closed_loop_hides() -> None:
    assert "coordinated omission" in _notes(LoadShape(max_concurrency=2), _record())
    assert "sent at once" in _notes(LoadShape(), _record())


def test_notes_say_what_the_client_held_back_and_when_it_was_late() -> None:
    shape = LoadShape(request_rate=1.0, max_concurrency=2)
    told = _notes(shape, _record())
    assert "held requests back" in told
    assert "median TTFT is 1500.0 ms" in told
    assert "itself was late (p99 250 ms)" in told
    assert _notes(shape, _record(due=0.0, sent=0.0, arrivals=[], max_tokens=4)) == ""


def test_notes_say_how_tokens_were_counted_and_what_was_not_measured() -> None:
    shape = LoadShape(request_rate=1.0)
    told = _notes(
        shape,
        _record(token_counts="estimated", cached_tokens=5, max_tokens=9),
        _record(1, token_counts="chunks"),
        _record(2, status="cancelled"),
    )
    assert "33.3% of the arrivals brought several tokens" in told
    assert "In 1 answers chunks did not say" in told
    assert "In 1 answers every chunk counted as one token" in told
    assert "1 of 2 answers ended before" in told
    assert "25.0% of the prompt tokens in its prefix cache" in told
    assert "1 requests were cancelled in flight and 0 not sent" in told
    assert "ended before" not in _notes(shape, _record(max_tokens=9), data="needle")
