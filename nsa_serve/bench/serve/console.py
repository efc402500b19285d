"""The block of figures that vLLM's users know, and what it leaves out below it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nsa_serve.bench.serve.needles import Found
from nsa_serve.bench.serve.options import LoadShape, SweepOver
from nsa_serve.bench.serve.results import Point

_WIDTH = 50
_TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
_SHOWN_ERRORS = 3
_SHOWN_CHARS = 300


def block(figures: Mapping[str, Any], shape: LoadShape) -> Iterator[str]:
    """The lines of the result."""
    yield f"{' Serving Benchmark Result ':=^{_WIDTH}}"
    yield _line("Successful requests:", figures["completed"])
    yield _line("Failed requests:", figures["failed"])
    if figures["cancelled"] or figures["not_sent"]:
        yield _line("Cancelled requests:", figures["cancelled"])
        yield _line("Requests not sent:", figures["not_sent"])
    if shape.max_concurrency is not None:
        yield _line("Maximum request concurrency:", shape.max_concurrency)
    if shape.request_rate != math.inf:
        yield _line("Request rate configured (RPS):", shape.request_rate)
    yield _line("Benchmark duration (s):", figures["duration"])
    yield _line("Total input tokens:", figures["total_input_tokens"])
    yield _line("Total generated tokens:", figures["total_output_tokens"])
    yield _line("Request throughput (req/s):", figures["request_throughput"])
    if figures["request_goodput"] is not None:
        yield _line("Request goodput (req/s):", figures["request_goodput"])
    yield _line("Output token throughput (tok/s):", figures["output_throughput"])
    yield _line("Peak output token throughput (tok/s):", figures["max_output_tokens_per_s"])
    yield _line("Peak concurrent requests:", float(figures["max_concurrent_requests"]))
    yield _line("Total token throughput (tok/s):", figures["total_token_throughput"])
    for key, (name, title) in _TITLES.items():
        yield f"{title:-^{_WIDTH}}"
        for statistic in ("mean", "median", "p99"):
            label = f"{statistic.capitalize()} {name} (ms):"
            yield _line(label, figures[f"{statistic}_{key}_ms"])
    if shape.is_open:
        yield f"{'Client queue (planned arrival to sending)':-^{_WIDTH}}"
        yield _line("Mean queue (ms):", figures["mean_queue_ms"])
        yield _line("P99 queue (ms):", figures["p99_queue_ms"])
    yield "=" * _WIDTH


def needle_lines(found: Iterable[Found]) -> Iterator[str]:
    """Shares found, a row for each depth and a column for each length."""
    table = {(cell.depth, cell.length): cell for cell in found}
    lengths = sorted({length for _, length in table})
    yield f"{'Needles found, by depth and length':-^{_WIDTH}}"
    yield f"{'':>8}" + "".join(f"{length:>9}" for length in lengths)
    for depth in sorted({depth for depth, _ in table}):
        cells = (table.get((depth, length)) for length in lengths)
        yield f"{depth:>7g}%" + "".join(
            f"{'' if c is None else f'{c.share:.0%}':>9}" for c in cells
        )
    asked = sum(cell.asked for cell in table.values())
    hits = sum(cell.found for cell in table.values())
    yield _line("Needles found:", f"{hits} of {asked}")


def sweep_lines(points: Sequence[Point], over: SweepOver) -> Iterator[str]:
    """A line for each load of a sweep, so that they can be compared."""
    head = ["req/s asked" if over == "rate" else "in flight", "done", "failed", "req/s", "tok/s"]
    head += ["TTFT p50", "TTFT p99", "TPOT p50", "ITL p99"]
    has_goals = all(point.figures["good_share"] is not None for point in points)
    yield "  ".join(f"{name:>8}" for name in [*head, *(["good"] if has_goals else [])])
    for point in points:
        shape, figures = point.shape, point.figures
        load = shape.request_rate if over == "rate" else shape.max_concurrency
        times = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms")
        cells = [f"{load:>{len(head[0])}g}", f"{figures['completed']:>8}"]
        cells += [f"{figures['failed']:>8}", f"{figures['request_throughput']:>8.2f}"]
        cells += [f"{figures['output_throughput']:>8.1f}", *(f"{figures[t]:>8.1f}" for t in times)]
        cells += [f"{figures['good_share']:>8.0%}"] if has_goals else []
        yield "  ".join(cells)
    yield "Times in ms."


def error_lines(errors: list[tuple[str, int]]) -> Iterator[str]:
    """What failed, most frequent first."""
    for text, count in errors[:_SHOWN_ERRORS]:
        yield f"{count} failed: {text[:_SHOWN_CHARS]}"
    if rest := sum(count for _, count in errors[_SHOWN_ERRORS:]):
        yield f"{rest} failed otherwise"


def _line(label: str, value: float | str) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {text:<10}"
