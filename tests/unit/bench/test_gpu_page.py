"""docs/gpu.md is made from results, and from nothing else."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.gpu_plots import PAGE, draw
from benchmarks.gpu_tables import NOTHING, engine_part, filled, kernel_part
from nsa_serve.bench.kernels import crossovers
from nsa_serve.bench.results import (
    EngineReport,
    KernelReport,
    LatencyPoint,
    Layer,
    Machine,
    Point,
    Rates,
    Side,
    Spread,
    Throughput,
)

MACHINE = Machine(
    device="H200", driver="580", python="3.12", torch="2.11", triton="3.6", nsa_serve="0.1.0",
    commit="abc", date="2026-01-01",
)  # fmt: skip


def _point(batch: int, context: int, nsa: float | None, fa3: float, prefill: bool = False) -> Point:
    return Point(
        batch=batch,
        context=context,
        floor_us=4.0,
        dense_floor_us=fa3 / 2,
        nsa=Side(us=nsa, skipped="" if nsa else "out of memory"),
        neighbours=Side(us=nsa and nsa / 2) if prefill else None,
        dense={"sdpa": Side(us=fa3 * 2), "fa3": Side(us=fa3)},
    )


DECODE = [_point(b, c, 8.0 + b, c * b / 512) for b in (1, 8) for c in (1024, 8192, 65_536)]
PREFILL = [_point(1, c, c / 4, c * c / 40_000, prefill=True) for c in (8192, 32_768)]
LAYER = Layer(heads="64/4/128", decode=DECODE, prefill=PREFILL, crossovers=crossovers(DECODE))
OTHER = Layer(heads="9/3/64", decode=[_point(1, 1000, None, 5.0)])
KERNELS = KernelReport(
    machine=MACHINE,
    rates=Rates(copy_bytes=4.3e12, read_bytes=4.1e12, matmul_flops=7.9e14),
    implementation="triton",
    dtype="bfloat16",
    page_size=64,
    cold_cache=True,
    lengths={},
    layers=[LAYER, OTHER],
)
SPREAD = Spread(mean=2.0, p50=1.5, p90=2.5, p99=3.25, count=9)
ENGINE = EngineReport(
    machine=MACHINE,
    model="random:1b",
    attention="nsa",
    dtype="bfloat16",
    start_seconds=9.0,
    peak_memory_bytes=3 << 30,
    cache_tokens=100_000,
    latency=[
        LatencyPoint(batch=8, input_len=8192, output_len=64, first_token=SPREAD, step=SPREAD),
        LatencyPoint(batch=8, input_len=1024, output_len=64, first_token=SPREAD, step=SPREAD),
        LatencyPoint(batch=32, input_len=65_536, output_len=64, skipped="too many"),
    ],
    throughput=Throughput(num_prompts=10, input_tokens=500, output_tokens=100, seconds=2.0),
)


def test_every_layer_has_its_tables() -> None:
    text = kernel_part([KERNELS])
    assert "| 1 × 8k | 4 | **9** | 2.2 | 16 | 16 | 32 | 8 | 1.78 |" in text
    assert "| 8k | 0.004 | **2.05** | 1.02 | 512.0 | 1.6 | 1.68 | 3.36 | 0.839 | 0.82 |" in text
    assert "copy 4.30 TB/s" in text
    assert "- batch 1: NSA is faster from" in text
    assert "- batch 8: dense attention" not in text
    assert "- no time of NSA: out of memory (1 × 1,000)" in text


def test_bars_stand_only_where_they_were_set() -> None:
    main, other = kernel_part([KERNELS]).split("### Decode, heads 9/3/64")
    assert "| bar |" in main
    assert "| bar |" not in other


def test_models_have_start_latency_and_throughput() -> None:
    text = engine_part([ENGINE])
    assert "| random:1b, nsa | 9.0 | 3.0 | 100,000 |" in text
    assert "| random:1b, nsa | 8 × 8k | 1.5 | 2.5 | 1.50 | 2.50 | 3.25 |" in text
    assert "| random:1b, nsa | 32 × 64k | too many | – | – | – | – |" in text
    assert "| random:1b, nsa | 10 × 50 in, 10 out | 50 | 300 |" in text


def test_only_marked_parts_of_the_page_change() -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb \\1\n"
    assert filled(page, {"x": r"new \1"}) == (
        "a\n<!-- begin x -->\nnew \\1\n<!-- end x -->\nb \\1\n"
    )
    with pytest.raises(AssertionError, match="no part y"):
        filled(page, {"y": ""})


def test_the_page_has_all_parts_and_nothing_is_made_up() -> None:
    parts = {"kernels": kernel_part([]), "engine": engine_part([])}
    assert filled(PAGE.read_text(), parts).count(NOTHING) == 2


def test_every_result_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    dense = msgspec.structs.replace(ENGINE, attention="dense")
    paths = draw([KERNELS], [ENGINE, dense], tmp_path)
    names = {path.stem for path in paths}
    assert names == {
        "gpu-decode-64-4-128",
        "gpu-prefill-64-4-128",
        "gpu-decode-9-3-64",
        "gpu-engine",
    }
    assert all(path.stat().st_size > 5000 for path in paths)
