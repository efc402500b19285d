"""The report holds together: well-formed, self-contained, with every picture there are data for."""

import re
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from nsa_serve.bench.serve.console import block, error_lines, needle_lines, sweep_lines
from nsa_serve.bench.serve.needles import Found
from nsa_serve.bench.serve.options import BenchOptions, DataOptions, LoadShape, Sweep
from nsa_serve.bench.serve.records import Arrival, Needle, RequestRecord
from nsa_serve.bench.serve.report import load_name, report_html, sweep_verdict
from nsa_serve.bench.serve.results import Run, as_json
from nsa_serve.bench.serve.svg import Plot, Scale, short

VLLM_KEYS = """
date endpoint_type backend label model_id tokenizer_id num_prompts request_rate burstiness
max_concurrency duration completed failed total_input_tokens total_output_tokens request_throughput
request_goodput output_throughput total_token_throughput max_output_tokens_per_s
max_concurrent_requests mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms mean_tpot_ms
median_tpot_ms std_tpot_ms p99_tpot_ms mean_itl_ms median_itl_ms std_itl_ms p99_itl_ms mean_e2el_ms
median_e2el_ms std_e2el_ms p99_e2el_ms
""".split()  # noqa: SIM905
DETAILS = {"input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"}


def _record(index: int, **fields: Any) -> RequestRecord:
    arrivals = [Arrival(0.1 + 0.01 * i, 1) for i in range(5)]
    defaults: dict[str, Any] = {"status": "ok", "sent": 0.1 * index, "due": 0.1 * index}
    defaults["arrivals"] = arrivals
    lengths = {"prompt_tokens": 10 * index, "output_tokens": 5, "max_tokens": 5, "end": 0.14}
    return RequestRecord(index=index, **(defaults | lengths | fields))


def _run(*loads: LoadShape, records: list[RequestRecord] | None = None, **options: Any) -> Run:
    made = BenchOptions(**options)
    run = Run(options=made, model="<model>", seed=5, date="20260102-030405", sizing="by hand")
    for shape in loads or (LoadShape(),):
        run.add(shape, records if records is not None else [_record(i) for i in range(9)], 2.0)
    return run


def _pictures(page: str) -> list[str]:
    """Names of the plots; each is well-formed and holds no number that is none."""
    names = []
    for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        svg = ElementTree.fromstring(text)
        names.append(svg.attrib["aria-label"])
        assert "nan" not in re.sub(r">[^<]*<", "", text)
        for box in svg.iter("rect"):
            assert float(box.attrib["width"]) > 0
            assert float(box.attrib["height"]) > 0
    return names


def test_a_report_is_one_file_with_every_picture() -> None:
    page = report_html(_run())
    assert _pictures(page) == [
        "Time to the first token against the length of the prompt",
        "Distribution of inter-token latencies",
        "Cumulative distribution of TTFT and E2EL",
        "Output tokens per second over time",
        "Requests in flight over time",
        "Timeline of requests",
    ]
    assert not re.findall(r"(?:src|href)=|url\(|@import", page)
    assert "&lt;model&gt;" in page
    assert "<model>" not in page
    assert "All requests at once" in page


def test_a_sweep_is_drawn_against_its_load() -> None:
    loads = [LoadShape(request_rate=rate) for rate in (1.0, 4.0)]
    run = _run(*loads, sweep=Sweep("rate", (1.0, 4.0)), goodput={"ttft": 50.0})
    page = report_html(run)
    assert _pictures(page)[:5] == [
        "TTFT, ms against requests per second asked for",
        "TPOT, ms against requests per second asked for",
        "E2EL, ms against requests per second asked for",
        "output tokens/s against requests per second asked for",
        "requests/s against requests per second asked for",
    ]
    assert "good: TTFT ≤ 50 ms" in page
    assert "At no load 99% of the requests or more kept within TTFT ≤ 50 ms: 0% at 1 req" in page
    assert page.count("<summary><h2>") == 2
    result = as_json(run)
    assert (result["sweep"], [p["request_rate"] for p in result["points"]]) == ("rate", [1.0, 4.0])


def _sweep(ttft: float, *values: float) -> Run:
    """Of rates, in this order; a request's first token takes 20 ms for each request a second."""
    run = _run(sweep=Sweep("rate", values), goodput={"ttft": ttft})
    run.points.clear()
    for value in values:
        late = [_record(i, arrivals=[Arrival(0.02 * value, 1)]) for i in range(9)]
        run.add(LoadShape(request_rate=value), late, 2.0)
    return run


@pytest.mark.parametrize(
    ("ttft", "verdict"),
    [
        (10.0, "At no load 99% of the requests or more kept within TTFT ≤ 10 ms: 0% at 1"),
        (50.0, "Up to 2 requests/s, 99% of the requests or more kept within TTFT ≤ 50 ms; 0% at 4"),
        (100.0, "At every load 99% of the requests or more kept within TTFT ≤ 100 ms."),
    ],
)
def test_a_sweep_says_up_to_which_load_the_bounds_held(ttft: float, verdict: str) -> None:
    run = _sweep(ttft, 4.0, 1.0, 2.0)
    assert sweep_verdict(run, ["4", "1", "2"]).startswith(verdict)


def test_a_sweep_ends_with_a_line_for_each_load() -> None:
    lines = list(sweep_lines(_sweep(50.0, 1.0, 4.0).points, "rate"))
    assert [line.split()[0] for line in lines[1:-1]] == ["1", "4"]
    assert [line.split()[-1] for line in lines[:-1]] == ["good", "100%", "0%"]
    assert len({len(line) for line in lines[:-1]}) == 1, "columns stand below each other"
    assert max(map(len, lines)) <= 110


def test_needles_errors_and_waiting_are_shown() -> None:
    needle = Needle(length=512, depth=50.0, answer="123456")
    records = [
        _record(0, needle=needle, text="123456"),
        _record(1, status="failed", error="HTTP 500: <b>", arrivals=[]),
        _record(2, status="cancelled", due=0.0),
        RequestRecord(index=3),
    ]
    shape = LoadShape(request_rate=1.0, max_concurrency=1)
    page = report_html(_run(shape, records=records, data=DataOptions(dataset="needle")))
    assert "Needles found by length and depth" in _pictures(page)
    assert "1 failed: HTTP 500: &lt;b&gt;" in page
    for kind in ("failed", "cancelled", "waiting"):
        assert f'class="box {kind}"' in page


@pytest.mark.parametrize(
    "records",
    [
        [],
        [RequestRecord(index=0)],
        [_record(0, status="failed", arrivals=[])],
        [_record(0, arrivals=[Arrival(0.1, 1)], end=0.1)],
        [_record(0, arrivals=[Arrival(0.1, 1), Arrival(0.1, 4)], end=0.1)],
    ],
)
def test_reports_of_almost_nothing(records: list[RequestRecord]) -> None:
    _pictures(report_html(_run(records=records)))


def test_results_have_the_names_of_vllm() -> None:
    run = _run(LoadShape())
    result = as_json(run)
    assert not set(VLLM_KEYS) - set(result)
    assert not DETAILS & set(result)
    assert (result["request_rate"], result["num_prompts"], result["seed"]) == ("inf", 9, 5)
    detailed = as_json(run, detailed=True)
    assert not DETAILS - set(detailed)
    assert [len(itls) for itls in detailed["itls"]] == [4] * 9
    assert detailed["ttfts"] == [0.1] * 9
    msgspec.json.encode(detailed)


def test_the_block_is_that_of_vllm() -> None:
    shape = LoadShape(request_rate=2.0, max_concurrency=3)
    point = _run(shape, goodput={"ttft": 1000.0}).points[0]
    lines = list(block(point.figures, shape))
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * 50
    assert lines[1] == "Successful requests:                     9         "
    assert "Request goodput (req/s):                 4.50      " in lines
    assert "Request rate configured (RPS):           2.00      " in lines
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "Median TTFT (ms):                        100.00    " in lines
    assert "P99 ITL (ms):                            10.00     " in lines


def test_needles_and_errors_on_the_console() -> None:
    found = [Found(512, 0.0, 4, 3), Found(512, 50.0, 2, 2), Found(1024, 50.0, 2, 0)]
    lines = list(needle_lines(found))
    assert [line.split() for line in lines[1:4]] == [
        ["512", "1024"],
        ["0%", "75%"],
        ["50%", "100%", "0%"],
    ]
    assert lines[-1].split() == ["Needles", "found:", "5", "of", "8"]
    errors = [("a", 9), ("b" * 900, 3), ("c", 2), ("d", 1), ("e", 1)]
    told = list(error_lines(errors))
    assert (told[0], len(told[1]), told[3]) == ("9 failed: a", 310, "2 failed otherwise")


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (LoadShape(), "all requests at once"),
        (LoadShape(max_concurrency=8), "at most 8 in flight"),
        (LoadShape(request_rate=2.5), "2.5 requests/s (Poisson)"),
        (LoadShape(request_rate=2.5, burstiness=0.5), "2.5 requests/s (burstiness 0.5)"),
        (LoadShape(ramp_up="linear"), "linear ramp from 1 to 10 requests/s"),
    ],
)
def test_loads_have_names(shape: LoadShape, name: str) -> None:
    assert load_name(shape) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.256, "0.256"), (12.0, "12"), (1234.5, "1234"), (34_567, "34.6k"), (2e6, "2M"),
     (5e9, "5G"), (999.6, "1000")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_ticks_are_round_and_inside() -> None:
    assert [value for value, _ in Scale(0.0, 103.0).ticks()] == [0, 20, 40, 60, 80, 100]
    assert [text for _, text in Scale(3.0, 700.0, log=True).ticks()] == [
        "5", "10", "20", "50", "100", "200", "500",
    ]  # fmt: skip
    narrow = Scale(17.0, 33.0, log=True)
    assert [text for _, text in narrow.ticks()] == ["20", "30", "40"], "20 alone says nothing"
    assert Scale(3.0, 3.0).ticks()
    assert Scale(0.0, 0.0, log=True).ticks() is not None


def test_places_are_those_of_the_values() -> None:
    assert Scale(0.0, 10.0).place(2.5) == 0.25
    assert Scale(1.0, 100.0, log=True).place(10.0) == pytest.approx(0.5)
    assert Scale(0.0, 10.0).place(99.0) == 1.0
    plot = Plot(Scale(0.0, 10.0), Scale(0.0, 10.0), "x", "y", width=172.0, height=158.0)
    plot.dots([(5.0, 5.0, "<")], "c1")
    # 100 wide between margins of 58 and 14, 100 high between 14 and 44.
    assert 'cx="108.0" cy="64.0" r="3"><title>&lt;</title>' in plot.svg("test")
