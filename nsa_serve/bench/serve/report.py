"""The report of a run: one HTML file that needs nothing else, light or dark as its reader is."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

import msgspec

from nsa_serve.bench.serve import charts
from nsa_serve.bench.serve.charts import Series
from nsa_serve.bench.serve.options import DataOptions, LoadShape
from nsa_serve.bench.serve.results import Point, Run, as_json

Key = Sequence[tuple[str, str]]
"""Colours and what they stand for."""

_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL", "icl": "between arrivals"}
_GOOD_ENOUGH = 0.99
_STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")
_TIMELINE_KEY = (
    ("waiting", "at the client"),
    ("c1", "until the first token"),
    ("c2", "until the end"),
    ("failed", "failed"),
    ("cancelled", "cancelled"),
)
_MEANINGS = (
    ("TTFT", "From sending a request to its first token, in the target's queue included."),
    ("TPOT", "(E2EL − TTFT) / (tokens − 1): the mean pace of one answer after its first token."),
    ("ITL", "The time of each token after the first arrival, over all answers. Tokens that "
            "arrived together share the time since the arrival before."),
    ("between arrivals", "The same without sharing: how long a reader waits for something new."),
    ("E2EL", "From sending a request to the end of its answer."),
    ("goodput", "Requests a second that kept within every bound that was set."),
)  # fmt: skip


def report_html(run: Run) -> str:
    """The page."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = f"Load test of {run.model}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="about">{escape(_about(run))}</p>',
        *(_sweep(run) if run.options.sweep is not None else ()),
        *(part for point in run.points for part in _point(run, point)),
        *_reading(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def load_name(shape: LoadShape) -> str:
    """What a load was, in words."""
    parts = []
    if shape.ramp_up is not None:
        rates = f"{shape.ramp_up_start_rps:g} to {shape.ramp_up_end_rps:g} requests/s"
        parts.append(f"{shape.ramp_up} ramp from {rates}")
    elif shape.is_open:
        kind = "Poisson" if shape.burstiness == 1 else f"burstiness {shape.burstiness:g}"
        parts.append(f"{shape.request_rate:g} requests/s ({kind})")
    if shape.max_concurrency is not None:
        parts.append(f"at most {shape.max_concurrency} in flight")
    return ", ".join(parts) or "all requests at once"


def _about(run: Run) -> str:
    options = run.options
    date = f"{run.date[:4]}-{run.date[4:6]}-{run.date[6:8]} {run.date[9:11]}:{run.date[11:13]} UTC"
    count = max((len(point.records) for point in run.points), default=0)
    loads = " for each load" if options.sweep is not None else ""
    text = (
        f"{options.target.root}, {options.target.endpoint} endpoint · {date} · {count:,} "
        f"requests{loads}: {_data(options.data)}, {run.sizing} · seed {run.seed}"
    )
    return text + (" · interrupted" if run.interrupted else "")


def _data(data: DataOptions) -> str:
    """What was asked, in words."""
    match data.dataset:
        case "random":
            random = data.random
            vary = f" ± {random.range_ratio:.0%}" if random.range_ratio else ""
            shared = f" behind {random.prefix_len:,} shared ones" if random.prefix_len else ""
            return (
                f"random prompts of {random.input_len:,}{vary} tokens{shared}, "
                f"answers of {random.output_len:,}{vary}"
            )
        case "needle":
            lengths = ", ".join(f"{length:,}" for length in data.needle.lengths)
            return f"needles in texts of {lengths} tokens"
        case file:
            return f"{file} {data.path.name if data.path else ''}".strip()


def _sweep(run: Run) -> Iterator[str]:
    assert run.options.sweep is not None
    over = run.options.sweep.over
    axis = "requests per second asked for" if over == "rate" else "requests in flight"
    names = [
        f"{p.shape.request_rate:g}" if over == "rate" else str(p.shape.max_concurrency)
        for p in run.points
    ]
    yield "<h2>Against the load</h2>"
    if verdict := sweep_verdict(run, names):
        yield f'<p class="verdict">{escape(verdict)}</p>'
    yield '<div class="cards">'
    for metric in ("ttft", "tpot", "e2el"):
        series = [_figure(f"{s}_{metric}_ms", s, kind) for s, kind in
                  (("median", "c1"), ("p99", "c3"))]  # fmt: skip
        name = _METRICS[metric]
        svg = charts.against_load(run.points, names, axis, f"{name}, ms", series, log=True)
        yield _card(f"{name} against the load", svg, [("c1", "median"), ("c3", "p99")])
    series = [_figure("output_throughput", "output tokens/s", "c2")]
    svg = charts.against_load(run.points, names, axis, "output tokens/s", series, log=False)
    yield _card("Throughput against the load", svg)
    if run.options.goodput:
        series = [
            _figure("request_throughput", "requests/s", "c1"),
            _figure("request_goodput", "good requests/s", "c2"),
        ]
        svg = charts.against_load(run.points, names, axis, "requests/s", series, log=False)
        yield _card("Goodput", svg, [("c1", "all"), ("c2", f"good: {_bounds(run)}")])
    yield f'<div class="card wide">{_sweep_table(run.points, names, axis)}</div></div>'


def sweep_verdict(run: Run, names: Sequence[str]) -> str:
    """Up to which load of a sweep the bounds of goodput held; nothing if none were set."""
    assert run.options.sweep is not None
    if not run.options.goodput or not run.points:
        return ""
    unit = "requests/s" if run.options.sweep.over == "rate" else "requests in flight"
    kept = f"{_GOOD_ENOUGH:.0%} of the requests or more kept within {_bounds(run)}"
    order = sorted(range(len(names)), key=lambda i: float(names[i]))
    shares = [float(run.points[i].figures["good_share"] or 0.0) for i in order]
    held = next((n for n, share in enumerate(shares) if share < _GOOD_ENOUGH), len(shares))
    if held == len(shares):
        return f"At every load {kept}."
    fell = f"{shares[held]:.0%} at {names[order[held]]} {unit}"
    if held == 0:
        return f"At no load {kept}: {fell}."
    return f"Up to {names[order[held - 1]]} {unit}, {kept}; {fell}."


def _bounds(run: Run) -> str:
    return ", ".join(f"{k.upper()} ≤ {v:g} ms" for k, v in run.options.goodput.items())


def _sweep_table(points: Sequence[Point], names: Sequence[str], axis: str) -> str:
    columns = {
        "completed": "completed",
        "failed": "failed",
        "request_throughput": "requests/s",
        "output_throughput": "output tokens/s",
        "median_ttft_ms": "TTFT p50, ms",
        "p99_ttft_ms": "TTFT p99, ms",
        "median_tpot_ms": "TPOT p50, ms",
        "p99_tpot_ms": "TPOT p99, ms",
        "p99_itl_ms": "ITL p99, ms",
    }
    rows = [
        [name, *(_number(point.figures[key]) for key in columns)]
        for name, point in zip(names, points, strict=True)
    ]
    head = [axis, *columns.values()]
    if all(point.figures["good_share"] is not None for point in points):
        head.append("good")
        for row, point in zip(rows, points, strict=True):
            row.append(f"{point.figures['good_share']:.0%}")
    return _table(head, rows)


def _point(run: Run, point: Point) -> Iterator[str]:
    """Folded in a sweep, where the points are many."""
    name = load_name(point.shape)
    title = f"<h2>{escape(name[0].upper() + name[1:])}</h2>"
    if run.options.sweep is None:
        yield title
        yield from _details(point)
    else:
        yield f"<details><summary>{title}</summary>{''.join(_details(point))}</details>"


def _details(point: Point) -> Iterator[str]:
    yield f'<div class="tiles">{"".join(_tiles(point))}</div>'
    if point.errors:
        texts = (f"{count} failed: {text[:400]}" for text, count in point.errors[:5])
        yield _list("notes bad", texts)
    yield _list("notes", point.notes)
    yield '<div class="cards">'
    yield f'<div class="card wide">{_latency_table(point)}</div>'
    done = [record for record in point.records if record.status == "ok"]
    if point.found:
        yield _card("Needles found", charts.needle_map(point.found))
    yield _card("TTFT against the prompt", charts.ttft_by_prompt(done))
    yield _card("Inter-token latency", charts.itl_histogram(done))
    yield _card("Requests as fast as this", charts.latency_curves(done),
                [("c1", "TTFT"), ("c3", "E2EL")])  # fmt: skip
    yield _card("Output over time", charts.over_time(point.records, point.duration))
    yield _card("In flight over time", charts.in_flight(point.records, point.duration),
                [("c1", "at the target"), ("c4", "held back at the client")])  # fmt: skip
    svg = charts.timeline(point.records, point.duration)
    yield _card("Timeline", svg, _TIMELINE_KEY, wide=True)
    yield "</div>"


def _latency_table(point: Point) -> str:
    rows = (
        [name, *(_number(point.figures[f"{statistic}_{key}_ms"]) for statistic in _STATISTICS)]
        for key, name in _METRICS.items()
    )
    return _table(["milliseconds", *_STATISTICS], rows)


def _tiles(point: Point) -> Iterator[str]:
    figures = point.figures
    yield _tile(_number(figures["request_throughput"]), "requests/s")
    yield _tile(_number(figures["output_throughput"]), "output tokens/s")
    yield _tile(_number(figures["median_ttft_ms"]), "ms TTFT, median")
    yield _tile(_number(figures["p99_ttft_ms"]), "ms TTFT, p99")
    yield _tile(_number(figures["median_tpot_ms"]), "ms TPOT, median")
    yield _tile(_number(figures["p99_itl_ms"]), "ms ITL, p99")
    if figures["good_share"] is not None:
        yield _tile(f"{figures['good_share']:.0%}", "good requests")
    completed, total = figures["completed"], len(point.records)
    yield _tile(f"{completed:,}", f"of {total:,} succeeded", bad=completed < total)


def _reading(run: Run) -> Iterator[str]:
    meanings = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _MEANINGS)
    figures = msgspec.json.format(msgspec.json.encode(as_json(run)), indent=2).decode()
    yield f'<h2>How to read this</h2><div class="card"><dl>{meanings}</dl></div>'
    shown = f'<pre class="card">{escape(figures)}</pre>'
    yield f"<details><summary>All figures</summary>{shown}</details>"


def _figure(key: str, name: str, kind: str) -> Series:
    return name, kind, lambda point: float(point.figures[key] or 0.0)


def _card(title: str, svg: str, key: Key = (), *, wide: bool = False) -> str:
    if not svg:
        return ""
    names = "".join(f'<i class="{kind}"></i>{escape(text)}' for kind, text in key)
    legend = f'<p class="key">{names}</p>' if names else ""
    return f'<div class="card{" wide" if wide else ""}"><h3>{escape(title)}</h3>{legend}{svg}</div>'


def _tile(value: str, name: str, *, bad: bool = False) -> str:
    return (
        f'<div class="tile{" bad" if bad else ""}"><b>{escape(value)}</b><span>{name}</span></div>'
    )


def _list(kind: str, texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{names}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _number(value: float) -> str:
    """Three digits that count, whole thousands with commas, so that columns can be compared."""
    if isinstance(value, int) or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"
