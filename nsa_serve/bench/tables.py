"""Reports as tables, for people."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nsa_serve.bench.crossover import Crossover
from nsa_serve.bench.results import (
    EngineReport,
    KernelReport,
    LatencyPoint,
    Layer,
    Machine,
    Point,
    Side,
    Spread,
)

_NONE = "–"


def print_kernel_header(console: Console, report: KernelReport, missing: dict[str, str]) -> None:
    """The machine, what it reached, and which dense sides are not there."""
    rates = report.rates
    _print_machine(console, report.machine)
    console.print(
        f"copy {rates.copy_bytes / 1e9:,.0f} GB/s, read {rates.read_bytes / 1e9:,.0f} GB/s, "
        f"{report.dtype} matrix product {rates.matmul_flops / 1e12:.3g} TFLOP/s"
    )
    cache = "not in the L2 cache" if report.cold_cache else "perhaps in a cache"
    console.print(f"NSA by {report.implementation}; pages of every call {cache}")
    for name, reason in missing.items():
        console.print(f"not measured: {name}, {reason}")


def print_layer(console: Console, layer: Layer) -> None:
    """Both tables and the crossovers of one shape."""
    if layer.decode:
        title = f"decode, one layer, heads {layer.heads}, µs"
        console.print(_points(title, "context", layer.decode, 1.0))
    if layer.prefill:
        title = f"prefill, one layer, heads {layer.heads}, ms"
        console.print(_points(title, "tokens", layer.prefill, 1e3))
    for found in layer.crossovers:
        console.print(f"  batch {found.batch}: {crossover_text(found)}")
    for point in (*layer.decode, *layer.prefill):
        for name, side in _sides(point).items():
            if side.skipped:
                console.print(f"  {point.batch} × {point.context:,} {name}: {side.skipped}")


def crossover_text(found: Crossover) -> str:
    """A crossover in words."""
    if found.faster == "from":
        assert found.context is not None
        return f"NSA is faster from {found.context:,.0f} tokens on"
    name = {"nsa": "NSA", "dense": "dense attention"}[found.faster]
    return f"{name} is faster at every measured context"


def print_engine(console: Console, report: EngineReport) -> None:
    """Start, memory, latencies, throughput."""
    _print_machine(console, report.machine)
    console.print(
        f"{report.model}, {report.attention} attention, {report.dtype}: started in "
        f"{report.start_seconds:.1f} s, peak {report.peak_memory_bytes / 2**30:.2f} GiB, "
        f"cache for {report.cache_tokens:,} tokens"
    )
    if report.latency:
        console.print(_latencies(report.latency))
    if (done := report.throughput) is not None:
        console.print(
            f"{done.num_prompts} requests, {done.input_tokens:,} tokens in and "
            f"{done.output_tokens:,} out, in {done.seconds:.1f} s: "
            f"{done.output_rate:,.0f} output tokens/s, {done.total_rate:,.0f} tokens/s"
        )


def _print_machine(console: Console, machine: Machine) -> None:
    parts = [machine.device]
    parts += [f"driver {machine.driver}"] if machine.driver else []
    parts += [f"torch {machine.torch}", f"triton {machine.triton or 'none'}"]
    parts += [f"nsa-serve {machine.nsa_serve} {machine.commit}".rstrip(), machine.date]
    console.print(", ".join(parts))


def _points(title: str, length: str, points: Sequence[Point], unit: float) -> Table:
    """Times in `unit` microseconds."""
    dense = list(dict.fromkeys(name for point in points for name in point.dense))
    alike = any(point.neighbours for point in points)
    columns = ["batch", length, "NSA", *(["NSA, alike"] if alike else []), "floor", "÷ floor"]
    columns += [*dense, "dense floor", "fastest dense ÷ NSA"]
    table = _table(title, columns)
    for point in points:
        cells = [str(point.batch), f"{point.context:,}", _time(point.nsa.us, unit)]
        if alike:
            cells.append(_time(point.neighbours.us if point.neighbours else None, unit))
        cells += [_time(point.floor_us, unit), _ratio(point.nsa.us, point.floor_us)]
        cells += [_time(point.dense[name].us if name in point.dense else None, unit)
                  for name in dense]  # fmt: skip
        speedup = _NONE if point.speedup is None else f"{point.speedup:.2f}"
        table.add_row(*cells, _time(point.dense_floor_us, unit), speedup)
    return table


def _latencies(points: Iterable[LatencyPoint]) -> Table:
    columns = ["batch", "tokens in", "out", "first token, ms", "p90", "p99",
               "step, ms", "p90", "p99", ""]  # fmt: skip
    table = _table("latency, all requests of a batch at once", columns)
    for point in points:
        cells = [str(point.batch), f"{point.input_len:,}", f"{point.output_len:,}"]
        cells += [*_spread(point.first_token), *_spread(point.step), point.skipped]
        table.add_row(*cells)
    return table


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return [_NONE] * 3
    return [f"{value:.2f}" for value in (spread.p50, spread.p90, spread.p99)]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _sides(point: Point) -> dict[str, Side]:
    alike = {} if point.neighbours is None else {"NSA, alike": point.neighbours}
    return {"NSA": point.nsa, **alike, **point.dense}


def _time(us: float | None, unit: float) -> str:
    if us is None:
        return _NONE
    value = us / unit
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(us: float | None, floor: float) -> str:
    return _NONE if us is None else f"{us / floor:.1f}"
