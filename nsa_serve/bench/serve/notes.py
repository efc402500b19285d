"""What a reader of the figures must know, said only where it applies."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nsa_serve.bench.serve.options import LoadShape
from nsa_serve.bench.serve.records import RequestRecord

_LATE_MS = 10.0
_QUEUED_MS = 1.0


def notes_on(
    shape: LoadShape, records: Sequence[RequestRecord], figures: Mapping[str, Any], data: str
) -> list[str]:
    """Sentences, most important first; `data` is the data set's name."""
    return [
        *_on_load(shape, figures),
        *_on_tokens(records, figures),
        *_on_answers(records, figures, data),
    ]


def _on_load(shape: LoadShape, figures: Mapping[str, Any]) -> Iterator[str]:
    if not shape.is_open and shape.max_concurrency is not None:
        yield (
            f"Closed loop: {shape.max_concurrency} requests in flight, the next one is sent when "
            "one ends. A slow target thereby slows its own load; these latencies hold for this "
            "concurrency, not for a rate of arrivals (coordinated omission)."
        )
    elif not shape.is_open:
        yield "All requests were sent at once: TTFT is mostly time in the target's queue."
    elif figures["p99_queue_ms"] > _QUEUED_MS:
        yield (
            f"--max-concurrency held requests back at the client (p99 {figures['p99_queue_ms']:.0f}"
            " ms). TTFT and E2EL count from sending and leave that out; counted from the planned "
            f"arrival, the median TTFT is {figures['median_ttft_arrival_ms']:.1f} ms and the p99 "
            f"{figures['p99_ttft_arrival_ms']:.1f} ms."
        )
    if shape.is_open and figures["p99_lateness_ms"] > _LATE_MS:
        yield (
            f"The load generator itself was late (p99 {figures['p99_lateness_ms']:.0f} ms): this "
            "machine could not keep up, so arrivals were not quite as planned and times may be "
            "too long."
        )


def _on_tokens(records: Sequence[RequestRecord], figures: Mapping[str, Any]) -> Iterator[str]:
    arrivals = [arrival for record in records for arrival in record.arrivals]
    several = sum(arrival.num_tokens > 1 for arrival in arrivals)
    if several:
        yield (
            f"{several / len(arrivals):.1%} of the arrivals brought several tokens; these share "
            "their time evenly in ITL. Between arrivals, as a reader sees them, the median is "
            f"{figures['median_icl_ms']:.1f} ms and the p99 {figures['p99_icl_ms']:.1f} ms."
        )
    counts = Counter(r.token_counts for r in records if r.status == "ok")
    if counts["estimated"]:
        yield (
            f"In {counts['estimated']} answers chunks did not say how many tokens they brought; "
            "the total was spread evenly over them."
        )
    if counts["chunks"]:
        yield (
            f"In {counts['chunks']} answers every chunk counted as one token: the target gave no "
            "total, or just this one."
        )


def _on_answers(
    records: Sequence[RequestRecord], figures: Mapping[str, Any], data: str
) -> Iterator[str]:
    if figures["ended_early"] and data != "needle":
        yield (
            f"{figures['ended_early']} of {figures['completed']} answers ended before their "
            "max_tokens; --ignore-eos makes lengths equal where the target knows it."
        )
    if figures["total_cached_tokens"]:
        share = figures["total_cached_tokens"] / max(figures["total_input_tokens"], 1)
        yield f"The target found {share:.1%} of the prompt tokens in its prefix cache."
    if figures["cancelled"] or figures["not_sent"]:
        yield (
            f"{figures['cancelled']} requests were cancelled in flight and {figures['not_sent']} "
            "not sent; neither is in any figure but the tokens of the timeline."
        )
