"""From the records of a load to its figures, under the names that vLLM's benchmark gives them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nsa_serve.bench.serve.options import METRICS, Metric
from nsa_serve.bench.serve.records import RequestRecord

PERCENTILES = (50, 90, 95, 99)
_MS = 1000.0


def summarize(
    records: Sequence[RequestRecord], duration: float, goodput: Mapping[Metric, float]
) -> dict[str, Any]:
    """All figures of a load that took `duration` seconds.

    Throughput and latencies are those of the requests that succeeded; times are in milliseconds
    where the name ends in `_ms`, else in seconds. `goodput` has bounds in milliseconds.
    """
    done = [record for record in records if record.status == "ok"]
    counts = Counter(record.status for record in records)
    num_input = sum(record.prompt_tokens for record in done)
    num_output = sum(record.output_tokens for record in done)
    good = sum(is_good(record, goodput) for record in done)
    per_second = 1.0 / duration if duration > 0.0 else 0.0
    return {
        "duration": duration,
        "completed": len(done),
        "failed": counts["failed"],
        "cancelled": counts["cancelled"],
        "not_sent": counts["not sent"],
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "total_cached_tokens": sum(record.cached_tokens for record in done),
        "ended_early": sum(record.output_tokens < record.max_tokens for record in done),
        "request_throughput": len(done) * per_second,
        "request_goodput": good * per_second if goodput else None,
        "good_share": good / len(records) if goodput and records else None,
        "output_throughput": num_output * per_second,
        "total_token_throughput": (num_input + num_output) * per_second,
        "max_output_tokens_per_s": peak_rate(records),
        "max_concurrent_requests": peak_concurrency(records),
        **_latencies(done),
    }


def values_of(records: Iterable[RequestRecord]) -> dict[str, list[float]]:
    """The latencies that figures are made of, in seconds, by the metric's short name.

    `itl` has one value a token, `icl` one for each arrival after the first, `queue` and
    `ttft_arrival` count from when a request was due.
    """
    values: dict[str, list[float]] = {
        name: [] for name in (*METRICS, "icl", "queue", "ttft_arrival", "lateness")
    }
    for record in records:
        for name, value in (("ttft", record.ttft), ("tpot", record.tpot), ("e2el", record.e2el)):
            if value is not None:
                values[name].append(value)
        values["itl"] += record.itls
        values["icl"] += record.gaps
        values["queue"].append(record.queued)
        values["lateness"].append(record.late)
        if record.ttft is not None:
            values["ttft_arrival"].append(record.late + record.queued + record.ttft)
    return values


def is_good(record: RequestRecord, goodput: Mapping[Metric, float]) -> bool:
    """Whether a request kept within every bound; `itl` bounds the mean of its tokens.

    An answer of one token has no TPOT and no ITL, which break no bound.
    """
    itls = record.itls
    measured: dict[Metric, float | None] = {
        "ttft": record.ttft,
        "tpot": record.tpot,
        "itl": sum(itls) / len(itls) if itls else None,
        "e2el": record.e2el,
    }
    late = (measured[name] for name in goodput)
    return record.status == "ok" and all(
        value is None or value * _MS <= bound
        for value, bound in zip(late, goodput.values(), strict=True)
    )


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles in milliseconds; zeros without values."""
    found = np.asarray(values or [0.0]) * _MS
    percentiles = np.percentile(found, PERCENTILES)
    return {
        f"mean_{name}_ms": float(found.mean()),
        f"median_{name}_ms": float(np.median(found)),
        f"std_{name}_ms": float(found.std()),
        **{f"p{p}_{name}_ms": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
    }


def peak_concurrency(records: Iterable[RequestRecord]) -> int:
    """Most requests that were in flight at one moment."""
    changes: list[tuple[float, int]] = []
    for record in records:
        if record.sent is not None and record.end is not None:
            changes += [(record.sent, 1), (record.sent + record.end, -1)]
    running = peak = 0
    for _, change in sorted(changes):  # at the same moment an end comes before a start
        running += change
        peak = max(peak, running)
    return peak


def peak_rate(records: Iterable[RequestRecord]) -> float:
    """Most output tokens that came within one second of the load's clock."""
    return float(max(tokens_by_second(records), default=0))


def tokens_by_second(records: Iterable[RequestRecord], width: float = 1.0) -> list[int]:
    """Output tokens that came in each interval of `width` seconds, of every request."""
    counts: Counter[int] = Counter()
    for record in records:
        for arrival in record.arrivals:
            counts[math.floor(((record.sent or 0.0) + arrival.time) / width)] += arrival.num_tokens
    return [counts[i] for i in range(max(counts, default=-1) + 1)]


def errors_of(records: Iterable[RequestRecord]) -> list[tuple[str, int]]:
    """What failed requests were told, most frequent first."""
    texts = Counter(record.error for record in records if record.status == "failed")
    return texts.most_common()


def _latencies(done: Sequence[RequestRecord]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, values in values_of(done).items():
        figures |= spread(name, values)
    return figures
