"""The tables of docs/gpu.md, from what `nsa-serve bench` wrote."""

import re
from collections.abc import Iterable, Sequence

from nsa_serve.bench.results import (
    LEFT_OUT,
    EngineReport,
    KernelReport,
    LatencyPoint,
    Layer,
    Machine,
    Point,
    Throughput,
)
from nsa_serve.bench.tables import crossover_text

NONE = "–"
NOTHING = "Not measured yet."
ENGINE_FIGURE = "gpu-engine"
LIBRARIES = {
    "fa3": "FlashAttention-3",
    "triton": "our Triton",
    "xformers": "xformers",
    "sdpa": "torch SDPA",
}
"""Dense sides in the order in which they are shown."""

BARS_FOR = "64/4/128"
DECODE_BARS = {
    (1, 8192): 16, (1, 65_536): 22, (8, 8192): 24, (8, 32_768): 34, (8, 65_536): 45,
    (32, 8192): 58, (32, 32_768): 100, (32, 65_536): 155,
}  # fmt: skip
"""Microseconds by batch and context that were asked of an H100 before anything was written."""
PREFILL_BARS = {8192: 1.6, 32_768: 9.0, 65_536: 20.0, 131_072: 50.0}
"""Milliseconds by tokens, likewise."""


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with new text between `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    for name, text in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
        assert pattern.search(page), f"the page has no part {name}"
        page = pattern.sub(lambda _, new=f"{begin}\n{text}\n{end}": new, page)  # type: ignore[misc]
    return page


def kernel_part(reports: Sequence[KernelReport]) -> str:
    """Tables of every layer."""
    if not reports:
        return NOTHING
    in_order = sorted(reports, key=lambda r: all(layer.heads != BARS_FOR for layer in r.layers))
    return "\n\n".join(text for report in in_order for text in _kernel_texts(report))


def _kernel_texts(report: KernelReport) -> Iterable[str]:
    rates = report.rates
    cold = "not in the L2 cache" if report.cold_cache else "the same in every call"
    yield (
        f"{_machine(report.machine)}. In the same run: copy {rates.copy_bytes / 1e12:.2f} TB/s, "
        f"read {rates.read_bytes / 1e12:.2f} TB/s, {report.dtype} matrix product "
        f"{rates.matmul_flops / 1e12:.0f} TFLOP/s. Pages that a call reads are {cold}."
    )
    for layer in report.layers:
        if layer.decode:
            yield f"### Decode, heads {layer.heads}, µs"
            yield f"![Time by context](images/{figure_name('decode', layer)}.png)"
            yield _decode_table(layer)
            yield "\n".join(f"- batch {c.batch}: {crossover_text(c)}" for c in layer.crossovers)
        if layer.prefill:
            yield f"### Prefill, heads {layer.heads}, ms"
            yield f"![Time by prompt](images/{figure_name('prefill', layer)}.png)"
            yield _prefill_table(layer)
        if missing := _missing([*layer.decode, *layer.prefill]):
            yield missing


def figure_name(stage: str, layer: Layer) -> str:
    """Of a layer's figure, without its ending."""
    return f"gpu-{stage}-{layer.heads.replace('/', '-')}"


def _decode_table(layer: Layer) -> str:
    """µs; the floor is the prediction."""
    bars = DECODE_BARS if layer.heads == BARS_FOR else {}
    dense = dense_names(layer.decode)
    head = ["batch × context", "floor", "**NSA**", "÷ floor", *(["bar"] if bars else [])]
    rows = []
    for p in layer.decode:
        bar = [_number(bars.get((p.batch, p.context)))] if bars else []
        row = [f"{p.batch} × {length(p.context)}", _number(p.floor_us), f"**{_number(p.nsa.us)}**"]
        row += [_ratio(p.nsa.us, p.floor_us), *bar]
        rows.append(row + _dense_cells(p, dense, 1.0))
    return _markdown(head + _dense_head(dense), rows)


def _prefill_table(layer: Layer) -> str:
    """ms."""
    bars = PREFILL_BARS if layer.heads == BARS_FOR else {}
    dense = dense_names(layer.prefill)
    head = ["tokens", "floor", "**NSA**", "alike", "÷ floor", *(["bar"] if bars else [])]
    rows = []
    for p in layer.prefill:
        alike = p.neighbours.us if p.neighbours else None
        bar = [_number(bars.get(p.context))] if bars else []
        row = [length(p.context), _ms(p.floor_us), f"**{_ms(p.nsa.us)}**", _ms(alike)]
        rows.append([*row, _ratio(p.nsa.us, p.floor_us), *bar, *_dense_cells(p, dense, 1e3)])
    return _markdown(head + _dense_head(dense), rows)


def dense_names(points: Iterable[Point]) -> list[str]:
    """Dense sides that were tried."""
    present = {name for point in points for name in point.dense}
    return [name for name in LIBRARIES if name in present]


def _dense_head(names: Iterable[str]) -> list[str]:
    labels = [LIBRARIES[name] for name in names]
    return [*labels, "dense floor", "fastest dense ÷ NSA"]


def _dense_cells(p: Point, names: Iterable[str], unit: float) -> list[str]:
    times = [_number(_over(p.dense[name].us if name in p.dense else None, unit)) for name in names]
    gain = NONE if p.speedup is None else f"{p.speedup:.2f}"
    return [*times, _number(_over(p.dense_floor_us, unit)), gain]


def _missing(points: Iterable[Point]) -> str:
    """What was tried and gave no time."""
    reasons: dict[str, list[str]] = {}
    for point in points:
        for name, side in {"NSA": point.nsa, **point.dense}.items():
            if side.skipped:
                place = f"{point.batch} × {length(point.context)}"
                reasons.setdefault(f"{name}: {side.skipped}", []).append(place)
    return "\n".join(f"- no time of {text} ({', '.join(at)})" for text, at in reasons.items())


def engine_part(reports: Sequence[EngineReport]) -> str:
    """Start, latency and throughput of every model."""
    if not reports:
        return NOTHING
    starts = [
        [
            _name(r),
            f"{r.start_seconds:.1f}{'' if r.kernels_cached else ', compiling kernels'}",
            f"{r.peak_memory_bytes / 2**30:.1f}",
            f"{r.cache_tokens:,}",
        ]
        for r in reports
    ]
    texts = [
        f"{_machine(reports[0].machine)}.",
        _markdown(["model", "start-up, s", "peak memory, GiB", "cache, tokens"], starts),
    ]
    measured = [(r, p) for r in reports for p in r.latency if p.skipped != LEFT_OUT]
    if latencies := [[_name(r), *_latency_row(p)] for r, p in measured]:
        head = [
            "model",
            "batch × prompt",
            "first token, ms",
            "p90",
            "decode step, ms",
            "p90",
            "p99",
        ]
        texts.append(f"![Decode step by context](images/{ENGINE_FIGURE}.png)")
        texts.append(_markdown(head, latencies))
    done = [[_name(r), *_throughput_row(r.throughput)] for r in reports if r.throughput]
    if done:
        texts.append(_markdown(["model", "requests", "output tokens/s", "all tokens/s"], done))
    return "\n\n".join(texts)


def _throughput_row(t: Throughput) -> list[str]:
    each_in, each_out = t.input_tokens / t.num_prompts, t.output_tokens / t.num_prompts
    requests = f"{t.num_prompts} × {each_in:.0f} in, {each_out:.0f} out"
    return [requests, f"{t.output_rate:,.0f}", f"{t.total_rate:,.0f}"]


def _latency_row(p: LatencyPoint) -> list[str]:
    place = f"{p.batch} × {length(p.input_len)}"
    if p.first_token is None:
        return [place, p.skipped or NONE, *[NONE] * 4]
    first = [_number(p.first_token.p50), _number(p.first_token.p90)]
    steps = (p.step.p50, p.step.p90, p.step.p99) if p.step else ()
    return [place, *first, *(f"{v:.2f}" for v in steps), *[NONE] * (3 - len(steps))]


def _name(report: EngineReport) -> str:
    return f"{report.model}, {report.attention}"


def _machine(machine: Machine) -> str:
    parts = [f"One {machine.device}", f"driver {machine.driver}" if machine.driver else ""]
    parts += [f"torch {machine.torch}", f"Triton {machine.triton}" if machine.triton else ""]
    parts += [f"commit {machine.commit}" if machine.commit else "", machine.date]
    return ", ".join(part for part in parts if part)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def length(tokens: int) -> str:
    """Tokens, in units of 1,024 where they are whole."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


def _over(us: float | None, unit: float) -> float | None:
    return None if us is None else us / unit


def _ms(us: float | None) -> str:
    return _number(_over(us, 1e3))


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(us: float | None, floor: float) -> str:
    return NONE if us is None else f"{us / floor:.1f}"
