"""A plan as tables, for people."""

import math
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nsa_serve.engine.plan import Attention, Fit, Plan

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_CACHED = {
    "kv": "keys and values",
    "compressed": "compressed slots",
    "window": "keys and values, window",
    "phi": "input of compression",
}


def print_plan(plan: Plan, this_machine_gib: float | None) -> None:
    """Print all tables; the column of `this_machine_gib` is named so."""
    console = Console(highlight=False)
    console.print(f"{plan.model}: {plan.num_parameters / 1e6:,.1f} million parameters\n")
    _print_table(console, "Weights", _weights(plan))
    stored_as = "float32" if plan.dtype == "int8" else plan.dtype
    _print_table(console, f"Cache for each token, {stored_as}", _cache(plan))
    title = f"Cache that a decode step reads for each sequence, {stored_as}"
    _print_table(console, title, _reads(plan))
    weights = _size((plan.nsa or plan.dense).weight_bytes[plan.dtype])
    console.print(f"A step reads the weights too, {weights}, once for all its sequences.")
    if plan.nsa is not None:
        nsa, dense = (sum(a.cache_bytes_per_token.values()) for a in (plan.nsa, plan.dense))
        times = f"{nsa / dense:.2f} times what dense attention stores"
        console.print(f"NSA saves reads, not bytes: its cache takes {times}.")
    title = f"Sequences at once, {plan.dtype}, in {plan.memory_utilization:.0%} of memory"
    _print_table(console, f"\n{title}", _fits(plan, this_machine_gib))


def _attentions(plan: Plan) -> dict[str, Attention]:
    return {"dense": plan.dense} if plan.nsa is None else {"NSA": plan.nsa, "dense": plan.dense}


def _weights(plan: Plan) -> Table:
    attentions = _attentions(plan)
    table = _table("stored as", attentions)
    for dtype in plan.dense.weight_bytes:
        label = "int8 (CPU)" if dtype == "int8" else dtype
        table.add_row(label, *(_size(a.weight_bytes[dtype]) for a in attentions.values()))
    return table


def _cache(plan: Plan) -> Table:
    attentions = _attentions(plan)
    table = _table("", attentions)
    costs = [attention.cache_bytes_per_token for attention in attentions.values()]
    for what in costs[0]:
        table.add_row(_CACHED[what], *(_size(cost.get(what, 0.0)) for cost in costs))
    table.add_section()
    table.add_row("together", *(_size(sum(cost.values())) for cost in costs))
    return table


def _reads(plan: Plan) -> Table:
    if plan.nsa is None:
        table = _table("context", ["dense"])
        for read in plan.dense.step_reads:
            table.add_row(f"{read.context:,}", _size(read.total))
        return table
    hybrid = any(read.dense_layers for read in plan.nsa.step_reads)
    parts = ["compressed", "selected", "window", *(["dense layers"] if hybrid else [])]
    table = _table("context", [*parts, "NSA", "dense", "ratio"])
    for nsa, dense in zip(plan.nsa.step_reads, plan.dense.step_reads, strict=True):
        sizes = [nsa.compressed, nsa.selected, nsa.window, nsa.dense_layers][: len(parts)]
        sizes += nsa.total, dense.total
        ratio = f"{dense.total / nsa.total:.1f}"
        table.add_row(f"{nsa.context:,}", *map(_size, sizes), ratio)
    return table


def _fits(plan: Plan, this_machine_gib: float | None) -> Table:
    rows: dict[int, list[Fit]] = {}
    for fit in plan.fits:
        rows.setdefault(fit.context, []).append(fit)
    memories = [fit.memory_gib for fit in next(iter(rows.values()))]
    here = {this_machine_gib: "\nthis machine"}
    table = _table("context", [f"{gib:.3g} GiB{here.get(gib, '')}" for gib in memories])
    for context, fits in rows.items():
        table.add_row(f"{context:,}", *(f"{fit.num_sequences:,}" for fit in fits))
    return table


def _table(first: str, columns: Iterable[str]) -> Table:
    table = Table(first, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print(title, style="bold")
    console.print(table)
    console.print()


def _size(num_bytes: float) -> str:
    if num_bytes < 1:
        return "–"
    power = min(int(math.log(num_bytes, 1024)), len(_UNITS) - 1)
    amount = num_bytes / 1024**power
    return f"{amount:,.{0 if amount >= 100 else 1}f} {_UNITS[power]}"
