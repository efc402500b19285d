"""The pictures of a report, each from what it shows to SVG."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nsa_serve.bench.serve.needles import Found
from nsa_serve.bench.serve.records import RequestRecord
from nsa_serve.bench.serve.results import Point
from nsa_serve.bench.serve.statistics import tokens_by_second, values_of
from nsa_serve.bench.serve.svg import Blank, Names, Plot, Scale, short

Series = tuple[str, str, Callable[[Point], float]]
"""A name, a colour, and the value at a point of a sweep."""

_MS = 1000.0
_MAX_ROWS = 400
_MAX_DOTS = 3000
_BINS = 60
_TIMELINE_WIDTH = 1150.0


def against_load(points: Sequence[Point], names: Sequence[str], axis: str, y_label: str,
                 series: Sequence[Series], *, log: bool) -> str:  # fmt: skip
    """Lines over the points of a sweep."""
    rows = [[value(point) for point in points] for _, _, value in series]
    largest = max((v for row in rows for v in row), default=1.0)
    smallest = min((v for row in rows for v in row if v > 0), default=1.0)
    y = Scale(smallest * 0.8, largest * 1.25, log=True) if log else Scale(0.0, largest * 1.08)
    plot = Plot(Names(names), y, axis, y_label)
    for (name, kind, _), row in zip(series, rows, strict=True):
        plot.line(enumerate(row), kind)
        plot.dots(
            [(i, v, f"{name} at {names[i]}: {short(v)}") for i, v in enumerate(row)], kind, 3.5
        )
    return plot.svg(f"{y_label} against {axis}")


def ttft_by_prompt(records: Iterable[RequestRecord]) -> str:
    """A dot for each request that had a first token."""
    found = _thin([(r.prompt_tokens, r.ttft * _MS, r.index) for r in records if r.ttft is not None])
    lengths = [length for length, _, _ in found] or [0]
    times = [time for _, time, _ in found] or [1.0]
    margin = max((max(lengths) - min(lengths)) * 0.05, 1.0)
    plot = Plot(
        Scale(min(lengths) - margin, max(lengths) + margin),
        Scale(0.0, max(times) * 1.08),
        "prompt, tokens",
        "TTFT, ms",
    )
    plot.dots([(n, t, f"request {i}: {n} tokens, {t:.1f} ms") for n, t, i in found], "c1 soft")
    return plot.svg("Time to the first token against the length of the prompt")


def itl_histogram(records: Iterable[RequestRecord]) -> str:
    """Inter-token latencies on a logarithmic axis, with median and p99."""
    values = np.asarray(values_of(records)["itl"]) * _MS
    values = values[values > 0]
    if not len(values):
        return ""
    # A few outliers must not squeeze the rest into one bin.
    low, high = float(values.min()), float(values.max())
    x = Scale(max(low, 1e-3), high, log=True)
    edges = np.geomspace(x.low, x.high, _BINS + 1)
    counts, _ = np.histogram(np.clip(values, x.low, x.high), edges)
    plot = Plot(x, Scale(0.0, float(counts.max()) * 1.15), "ITL, ms", "tokens")
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            text = f"{left:.3g} to {right:.3g} ms: {count} tokens"
            plot.box((left, right), (0.0, float(count)), "c2", text)
    for row, percentile in enumerate((50, 99)):
        value = float(np.percentile(values, percentile))
        plot.rule(value, f"p{percentile} {value:.1f} ms", row)
    return plot.svg("Distribution of inter-token latencies")


def latency_curves(records: Iterable[RequestRecord]) -> str:
    """Which share of requests was faster than a time, to the first token and to the end."""
    values = values_of(records)
    curves = [(name, kind, np.sort(values[key]) * _MS)
              for name, kind, key in (("TTFT", "c1", "ttft"), ("E2EL", "c3", "e2el"))]  # fmt: skip
    curves = [curve for curve in curves if len(curve[2])]
    if not curves:
        return ""
    low = min(float(times[0]) for _, _, times in curves)
    high = max(float(times[-1]) for _, _, times in curves)
    plot = Plot(
        Scale(low * 0.9, high * 1.1, log=True), Scale(0.0, 100.0), "ms", "requests as fast, %"
    )
    for _, kind, times in curves:
        shares = np.arange(1, len(times) + 1) / len(times) * 100.0
        keep = np.unique(np.linspace(0, len(times) - 1, 200).astype(int))
        plot.line([(float(times[i]), float(shares[i])) for i in keep], kind)
    return plot.svg("Cumulative distribution of TTFT and E2EL")


def over_time(records: Sequence[RequestRecord], duration: float) -> str:
    """Output tokens a second while the load went on."""
    width = max(duration / 120.0, 0.1)
    rates = [count / width for count in tokens_by_second(records, width)]
    plot = Plot(
        Scale(0.0, duration), Scale(0.0, max([*rates, 1.0]) * 1.08), "time, s", "output tokens/s"
    )
    points = [((i + 0.5) * width, rate) for i, rate in enumerate(rates)]
    plot.area(points, "c2")
    plot.line(points, "c2")
    return plot.svg("Output tokens per second over time")


def in_flight(records: Iterable[RequestRecord], duration: float) -> str:
    """Requests in flight while the load went on, and those that waited at the client."""
    running = _steps([(r.sent, r.sent + r.end) for r in records
                      if r.sent is not None and r.end is not None])  # fmt: skip
    waiting = _steps([(r.due, r.due + r.queued) for r in records if r.queued > 1e-3])
    peak = max((count for _, count in running + waiting), default=1)
    plot = Plot(Scale(0.0, duration), Scale(0.0, peak * 1.08), "time, s", "requests")
    plot.area(running, "c1")
    plot.line(running, "c1")
    if waiting:
        plot.line(waiting, "c4")
    return plot.svg("Requests in flight over time")


def timeline(records: Sequence[RequestRecord], duration: float) -> str:
    """A row for each request: at the client, until the first token, until the end."""
    rows = [r for r in records if r.sent is not None]
    rows = rows[:: max(math.ceil(len(rows) / _MAX_ROWS), 1)]
    height = 62.0 + max(min(len(rows) * 7.0, 520.0), 60.0)
    plot = Plot(Scale(0.0, duration), Blank(0.0, float(max(len(rows), 1))), "time, s",
                "requests, first above",
                width=_TIMELINE_WIDTH, height=height, y_grid=False)  # fmt: skip
    for row, record in enumerate(rows):
        place = (len(rows) - row - 0.9, len(rows) - row - 0.1)
        sent, end = record.sent or 0.0, (record.sent or 0.0) + (record.end or 0.0)
        text = _told(record)
        if record.queued > 1e-3:
            plot.box((record.due, sent), place, "waiting", text)
        if record.status == "failed":
            plot.box((sent, end), place, "failed", text)
            continue
        first = end if record.ttft is None else sent + record.ttft
        plot.box((sent, first), place, "c1", text)
        if end > first:
            plot.box((first, end), place, "c2" if record.status == "ok" else "cancelled", text)
    return plot.svg("Timeline of requests")


def needle_map(found: Sequence[Found]) -> str:
    """Shares of needles found: lengths across, depths down."""
    lengths = sorted({cell.length for cell in found})
    depths = sorted({cell.depth for cell in found}, reverse=True)
    height = 90.0 + 44.0 * len(depths)
    plot = Plot(Names([f"{n:,}" for n in lengths]), Names([f"{d:g} %" for d in depths]),
                "text, tokens", "depth of the needle", height=height, y_grid=False)  # fmt: skip
    for cell in found:
        x, y = lengths.index(cell.length), depths.index(cell.depth)
        hue = 8 + 132 * cell.share
        text = f"{cell.length} tokens, depth {cell.depth:g} %: {cell.found} of {cell.asked} found"
        plot.box((x - 0.48, x + 0.48), (y - 0.46, y + 0.46), "cell", text,
                 style=f"fill:hsl({hue:.0f} 62% 28%)")  # fmt: skip
        plot.text(x, y, f"{cell.share:.0%}", "on")
    return plot.svg("Needles found by length and depth")


def _told(record: RequestRecord) -> str:
    ttft = "no token" if record.ttft is None else f"TTFT {record.ttft * _MS:.1f} ms"
    end = "" if record.end is None else f", {record.status} after {record.end * _MS:.0f} ms"
    error = f": {record.error[:120]}" if record.error else ""
    return (
        f"request {record.index}: {record.prompt_tokens} + {record.output_tokens} tokens, "
        f"{ttft}{end}{error}"
    )


def _steps(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """How many spans hold each moment, as the corners of a line."""
    changes = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
    corners, count = [(0.0, 0.0)], 0
    for time, change in changes:
        corners.append((time, float(count)))
        count += change
        corners.append((time, float(count)))
    return corners if changes else []


def _thin(values: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    return values[:: max(math.ceil(len(values) / _MAX_DOTS), 1)]
