"""What a kernel benchmark draws, checks and leaves out."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console
from torch import Tensor

from nsa_serve.bench import sides
from nsa_serve.bench.cases import Pool, decode_case, num_cold_tables, prefill_case
from nsa_serve.bench.kernels import KernelBench, KernelOptions, crossovers, measured
from nsa_serve.bench.results import (
    KernelReport,
    Layer,
    Machine,
    Point,
    Rates,
    Side,
    read_kernel_report,
    write_report,
)
from nsa_serve.bench.shapes import ALL_SHAPES, PAPER, HeadShape, parse_heads
from nsa_serve.bench.tables import print_kernel_header, print_layer
from nsa_serve.bench.truth import DecodeTruth, PrefillTruth, relative_error
from nsa_serve.errors import ConfigError

CPU = torch.device("cpu")
HEADS = HeadShape(4, 2, 16, 8)


@pytest.fixture
def pool() -> Pool:
    torch.manual_seed(0)
    return Pool.make(HEADS, 5000, torch.float32, CPU)


@pytest.mark.parametrize("text", ["64/4", "9/2/64", "a/b/c", "8/0/16", "8/4/16/8/1", ""])
def test_heads_that_make_no_layer_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="heads"):
        parse_heads(text)


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
def test_heads_are_written_as_they_are_read(shape: HeadShape) -> None:
    assert parse_heads(str(shape)) == shape


def test_a_step_has_pages_of_its_own(pool: Pool) -> None:
    case = decode_case(pool, batch=2, context=700, num_tables=3)
    assert len(case.rows) == 3
    for rows in case.rows:
        assert rows.positions.tolist() == [699, 699]
        assert len(set(rows.block_table.flatten().tolist())) == rows.block_table.numel() == 22


def test_enough_pages_are_read_in_turn_to_empty_the_cache() -> None:
    assert num_cold_tables(10, 0) == 1
    assert num_cold_tables(30, 50) == 4
    assert num_cold_tables(1000, 50) == 1
    assert num_cold_tables(1, 10**9) == 32


@pytest.mark.parametrize("context", [1, 64, 1500])
def test_right_results_pass_the_check_and_wrong_ones_do_not(pool: Pool, context: int) -> None:
    case = decode_case(pool, batch=3, context=context, num_tables=2)
    truth = DecodeTruth(case, PAPER)
    out = _reference().decode_calls(case, PAPER)[0]()
    assert truth.nsa_error(out) < 1e-5
    assert truth.nsa_error(out.roll(1, 1)) > 0.1
    dense = sides.Contiguous().decode_ways(case)[0][0]()
    assert truth.dense_error(dense) < 1e-5
    if context == 1500:
        assert truth.dense_error(out) > 0.1


def test_a_prompt_is_checked_at_its_start_middle_and_end(pool: Pool) -> None:
    case = prefill_case(pool, 1300)
    truth = PrefillTruth(case, PAPER)
    out = _reference().prefill_call(case, case.q, PAPER)()
    assert truth.nsa_error(case.q, out) < 1e-5
    for wrong in (0, 650, 1299):
        spoiled = out.clone()
        spoiled[wrong] += 1.0
        assert truth.nsa_error(case.q, spoiled) > 1e-2
    assert truth.nsa_error(case.alike, out) > 0.1
    assert truth.dense_error(sides.Contiguous().prefill_call(case)()) < 1e-5


def test_alike_neighbours_share_their_blocks(pool: Pool) -> None:
    case = prefill_case(pool, 2900)
    assert PrefillTruth(case, PAPER).neighbour_overlap > 0.85
    cosine = torch.cosine_similarity(case.alike[1:], case.alike[:-1], dim=-1)
    assert cosine.median() > 0.99


def _reference() -> sides.Nsa:
    from nsa_serve.bench import definition

    return sides.Nsa("reference", definition.sparse_decode, definition.sparse_prefill)


def _ways(
    *ways: Sequence[Callable[[], Tensor]],
) -> Callable[[], Iterable[Sequence[Callable[[], Tensor]]]]:
    return lambda: ways


def test_the_fastest_right_way_counts() -> None:
    times = iter([5.0, 3.0])
    ways = _ways([lambda: torch.zeros(1)], [lambda: torch.ones(1)])
    side = measured(ways, lambda out: float(out) * 0.125, lambda _: next(times), 0.2)
    assert side == Side(us=3.0, error=0.125)


@pytest.mark.parametrize("error", [0.3, float("nan")])
def test_a_wrong_result_has_no_time(error: float) -> None:
    side = measured(_ways([lambda: torch.zeros(1)]), lambda _: error, lambda _: 1.0, 0.2)
    assert side.us is None
    assert side.skipped.startswith("wrong by")


def test_a_library_that_fails_has_no_time() -> None:
    def fails() -> Tensor:
        raise ValueError("no\n such shape")

    side = measured(_ways([fails]), lambda _: 0.0, lambda _: 1.0, 0.2)
    assert side == Side(skipped="ValueError: no such shape")


def test_relative_error_is_that_of_all_parts_together() -> None:
    got, want = (
        [torch.tensor([3.0]), torch.tensor([0.0])],
        [torch.tensor([3.0]), torch.tensor([4.0])],
    )
    assert relative_error(got, want) == pytest.approx(4 / 5)


def _point(batch: int, context: int, nsa: float | None, **dense: float | None) -> Point:
    return Point(
        batch=batch,
        context=context,
        floor_us=1.0,
        dense_floor_us=2.0,
        nsa=Side(us=nsa),
        dense={name: Side(us=us, skipped="" if us else "broke") for name, us in dense.items()},
    )


POINTS = [
    _point(1, 4000, 10.0, sdpa=20.0, fa3=16.0),
    _point(1, 1000, 10.0, sdpa=4.0, fa3=None),
    _point(8, 1000, None, sdpa=4.0),
    _point(32, 1000, 2.0, fa3=4.0),
]


def test_the_fastest_dense_side_is_compared_with() -> None:
    assert POINTS[0].best_dense == ("fa3", 16.0)
    assert POINTS[0].speedup == 1.6
    assert POINTS[1].best_dense == ("sdpa", 4.0)
    assert POINTS[2].speedup is None
    assert _point(1, 1, 1.0, fa3=None).best_dense is None


def test_crossovers_use_what_was_measured_on_both_sides() -> None:
    one, many = crossovers(POINTS)
    assert (one.batch, one.faster) == (1, "from")
    assert one.context is not None
    assert 1000 < one.context < 4000
    assert (many.batch, many.faster) == (32, "nsa")


def test_reports_survive_json_and_tables_show_all_of_them(tmp_path: Path) -> None:
    prefill = msgspec.structs.replace(POINTS[0], neighbours=Side(us=7_000.0))
    layer = Layer(heads="4/2/16", decode=POINTS, prefill=[prefill], crossovers=crossovers(POINTS))
    report = KernelReport(
        machine=Machine(
            device="a GPU", driver="1", python="3", torch="2", triton="", nsa_serve="0",
            commit="", date="2026-01-01",
        ),
        rates=Rates(copy_bytes=4e12, read_bytes=3e12, matmul_flops=7e14),
        implementation="triton",
        dtype="bfloat16",
        page_size=64,
        cold_cache=True,
        lengths={"window": 512},
        layers=[layer],
    )  # fmt: skip
    assert report.rates.best_bytes == 4e12
    write_report(tmp_path / "new" / "report.json", report)
    assert read_kernel_report(tmp_path / "new" / "report.json") == report
    console = Console(width=160)
    with console.capture() as capture:
        print_kernel_header(console, report, {"xformers": "not installed"})
        print_layer(console, layer)
    shown = capture.get()
    for text in (
        "a GPU",
        "4,000 GB/s",
        "700 TFLOP/s",
        "xformers, not installed",
        "1.60",
        "7.00",
        "1 × 1,000 fa3: broke",
        "NSA is faster from",
        "at every measured context",
    ):
        assert text in shown


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Triton, whose interpreter takes minutes."""
    reasons = {"triton": "left out", "sdpa": ""}
    monkeypatch.setattr(sides, "dense_backends", lambda _: reasons)


@pytest.mark.usefixtures("plain_torch")
def test_a_run_measures_every_point_and_counts_them() -> None:
    options = KernelOptions((HEADS,), (1, 2), (70, 140), (65,), device="cpu")
    done: list[int] = []
    bench = KernelBench(options, done.append)
    (layer,) = bench
    assert sum(done) == options.num_points == 5
    assert [(p.batch, p.context) for p in layer.decode] == [(1, 70), (1, 140), (2, 70), (2, 140)]
    assert [p.context for p in layer.prefill] == [65]
    assert bench.nsa_is_complete
    for point in (*layer.decode, *layer.prefill):
        assert point.nsa.us is not None
        assert point.nsa.error is not None
        assert point.nsa.error < 1e-4
        assert point.speedup is not None
    assert bench.report.layers == [layer]
    assert bench.missing["triton"] == "left out"
    assert bench.report.implementation == "reference"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the logarithm of 0 is meant
@pytest.mark.skipif(torch.cuda.is_available(), reason="for Triton's interpreter")
def test_our_kernels_are_measured_in_the_interpreter_too() -> None:
    options = KernelOptions((HeadShape(2, 1, 16, 16),), (1,), (80,), (40,), device="cpu")
    bench = KernelBench(options, lambda _: None)
    (layer,) = bench
    assert bench.report.implementation == "triton"
    for point in (*layer.decode, *layer.prefill):
        assert point.nsa.us is not None, point.nsa.skipped
        assert {name for name, side in point.dense.items() if side.us} == {"triton", "sdpa"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu() -> None:
    heads = (HeadShape(32, 8, 128, 128), HeadShape(9, 3, 64, 64))
    bench = KernelBench(KernelOptions(heads, (1, 8), (1024, 9000), (3000,)), lambda _: None)
    for layer in bench:
        for point in (*layer.decode, *layer.prefill):
            assert point.nsa.us is not None, point.nsa.skipped
            assert 0.8 * point.floor_us < point.nsa.us
            assert point.dense["triton"].us is not None, point.dense["triton"].skipped
            assert point.dense["sdpa"].us is not None, point.dense["sdpa"].skipped


def test_no_gpu_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="bench kernels needs a GPU") as caught:
        KernelBench(KernelOptions((HEADS,), (1,), (64,), ()), lambda _: None)
    assert "\n" not in str(caught.value)
