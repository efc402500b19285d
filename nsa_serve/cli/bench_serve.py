"""`nsa-serve bench serve`: a load test of any OpenAI-compatible server."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec
import typer

from nsa_serve.errors import ConfigError

if TYPE_CHECKING:
    from nsa_serve.bench.serve.options import BenchOptions, Metric, Sweep
    from nsa_serve.bench.serve.results import Point, Run

KEY_VARIABLE = "OPENAI_API_KEY"

_URL_HELP = "The target, with or without /v1."
_MODEL_HELP = "The first one that the target lists unless given."
_HEADER_HELP = "A header for every request, NAME=VALUE; may be given several times."
_EXTRA_HELP = "A JSON object laid over every request's body."
_RATE_HELP = "Requests a second on average; inf sends all at once."
_BURST_HELP = "Of arrivals: 1 is a Poisson process, less comes in bursts, inf is a metronome."
_CONCURRENCY_HELP = "Requests in flight at most; others wait at the client."
_RAMP_HELP = "Let the rate grow from --ramp-up-start-rps to --ramp-up-end-rps."
_SWEEP_HELP = "One load after another: rate:1,2,4,inf or concurrency:1,8,64."
_GOODPUT_HELP = "Bounds in ms that a good request keeps within: ttft:500 tpot:50 itl:60 e2el:9000."
_SEED_HELP = "Makes the same prompts and arrivals again; a new one is drawn unless given."
_SECONDS_HELP = "Cancel what has not ended by then."
_TOKENIZER_HELP = "A model folder to size prompts with; the target is asked for sizes otherwise."
_PATH_HELP = "ShareGPT: a JSON list of conversations. jsonl: lines with prompt or messages."
_VOCAB_HELP = "Make random prompts of token ids below this; their lengths are exact."
_RANGE_HELP = "Lengths vary between (1 − ratio) and (1 + ratio) times as long."
_JSON_HELP = "Write the figures there as JSON, with vLLM's keys."
_DETAILED_HELP = "Put vLLM's lists into the JSON too, with an entry for each request."
_REQUESTS_HELP = "Write a line of JSON for each request there."
_REPORT_HELP = "Write a report with plots there, one HTML file."
_HAYSTACK_HELP = "A text to hide needles in; made-up sentences unless given."


def serve(
    base_url: Annotated[str, typer.Option(help=_URL_HELP)] = "http://127.0.0.1:8000",
    endpoint: Annotated[Literal["completions", "chat"], typer.Option()] = "completions",
    model: Annotated[str | None, typer.Option(help=_MODEL_HELP)] = None,
    api_key: Annotated[str | None, typer.Option(envvar=KEY_VARIABLE)] = None,
    header: Annotated[list[str] | None, typer.Option(help=_HEADER_HELP)] = None,
    extra_body: Annotated[str, typer.Option(help=_EXTRA_HELP)] = "{}",
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Ask for answers of full length.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for one request.")] = 3600.0,
    request_rate: Annotated[float, typer.Option(help=_RATE_HELP)] = math.inf,
    burstiness: Annotated[float, typer.Option(help=_BURST_HELP)] = 1.0,
    max_concurrency: Annotated[int | None, typer.Option(help=_CONCURRENCY_HELP, min=1)] = None,
    ramp_up: Annotated[
        Literal["linear", "exponential"] | None, typer.Option(help=_RAMP_HELP)
    ] = None,
    ramp_up_start_rps: Annotated[float, typer.Option()] = 1.0,
    ramp_up_end_rps: Annotated[float, typer.Option()] = 10.0,
    sweep: Annotated[str | None, typer.Option(help=_SWEEP_HELP)] = None,
    num_prompts: Annotated[int, typer.Option(help="Requests of each load.", min=1)] = 100,
    num_warmups: Annotated[
        int, typer.Option(help="Requests before each load, not measured.", min=0)
    ] = 0,
    max_seconds: Annotated[float | None, typer.Option(help=_SECONDS_HELP)] = None,
    seed: Annotated[int | None, typer.Option(help=_SEED_HELP, min=0)] = None,
    goodput: Annotated[list[str] | None, typer.Option(help=_GOODPUT_HELP)] = None,
    dataset: Annotated[
        Literal["random", "sharegpt", "jsonl", "needle"], typer.Option("--dataset")
    ] = "random",
    dataset_path: Annotated[Path | None, typer.Option(help=_PATH_HELP)] = None,
    tokenizer: Annotated[Path | None, typer.Option(help=_TOKENIZER_HELP)] = None,
    output_len: Annotated[
        int | None, typer.Option(help="Tokens of an answer, over the data set's.", min=1)
    ] = None,
    random_input_len: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 512,
    random_output_len: Annotated[int, typer.Option(help="Tokens of an answer.")] = 128,
    random_range_ratio: Annotated[float, typer.Option(help=_RANGE_HELP)] = 0.0,
    random_prefix_len: Annotated[int, typer.Option(help="Tokens shared by all prompts.")] = 0,
    random_num_prefixes: Annotated[int, typer.Option(help="Different shared prefixes.")] = 1,
    vocab_size: Annotated[int | None, typer.Option(help=_VOCAB_HELP)] = None,
    needle_lengths: Annotated[str, typer.Option(help="Tokens of the texts.")] = "1024,2048,4096",
    needle_depths: Annotated[
        str, typer.Option(help="Where needles stand, in percent of the text.")
    ] = "0,25,50,75,100",
    needle_repeat: Annotated[int, typer.Option(help="Texts of each length and depth.")] = 1,
    needle_distractors: Annotated[int, typer.Option(help="Similar facts in each text.")] = 0,
    needle_haystack: Annotated[Path | None, typer.Option(help=_HAYSTACK_HELP)] = None,
    output: Annotated[Path | None, typer.Option(help=_JSON_HELP)] = None,
    save_detailed: Annotated[bool, typer.Option("--save-detailed", help=_DETAILED_HELP)] = False,
    requests: Annotated[Path | None, typer.Option(help=_REQUESTS_HELP)] = None,
    report: Annotated[Path | None, typer.Option(help=_REPORT_HELP)] = None,
    more_goals: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Load a server and measure what its users see.

    Any server that speaks OpenAI's API. Prints vLLM's block of figures. Exits with 1 if no request
    succeeded, with 130 after Ctrl-C, which keeps what was measured until then.
    """
    try:
        from nsa_serve.bench.serve.run import run_bench
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"bench serve needs {error.name}: pip install 'nsa-serve[bench]'"
        ) from None
    from nsa_serve.bench.serve import options as kinds

    options = kinds.BenchOptions(
        target=kinds.TargetOptions(
            base_url=base_url,
            endpoint=endpoint,
            model=model,
            headers=dict(_pair(text) for text in header or ()),
            api_key=api_key,
            extra_body=_json_object(extra_body),
            ignore_eos=ignore_eos,
            timeout=timeout,
        ),
        load=kinds.LoadShape(
            request_rate=request_rate,
            burstiness=burstiness,
            max_concurrency=max_concurrency,
            ramp_up=ramp_up,
            ramp_up_start_rps=ramp_up_start_rps,
            ramp_up_end_rps=ramp_up_end_rps,
        ),
        data=kinds.DataOptions(
            dataset=dataset,
            path=dataset_path,
            num_prompts=num_prompts,
            output_len=output_len,
            tokenizer=tokenizer,
            random=kinds.RandomData(
                input_len=random_input_len,
                output_len=output_len or random_output_len,
                range_ratio=random_range_ratio,
                prefix_len=random_prefix_len,
                num_prefixes=random_num_prefixes,
                vocab_size=vocab_size,
            ),
            needle=kinds.NeedleData(
                lengths=tuple(int(n) for n in _numbers(needle_lengths)),
                depths=_numbers(needle_depths),
                repeat=needle_repeat,
                distractors=needle_distractors,
                haystack=needle_haystack,
                output_len=output_len or kinds.NeedleData().output_len,
            ),
        ),
        sweep=None if sweep is None else _sweep(sweep),
        num_warmups=num_warmups,
        seed=seed,
        goodput=_goals([*(goodput or ()), *(more_goals or ())]),
        max_seconds=max_seconds,
    )
    _check_writable(output, requests, report)
    run = run_bench(options, lambda point: _show(options, point))
    _show_sweep(run)
    _keep(run, output, requests, report, detailed=save_detailed)
    if run.interrupted:
        raise typer.Exit(130)
    if not any(point.figures["completed"] for point in run.points):
        raise typer.Exit(1)


def _show(options: "BenchOptions", point: "Point") -> None:
    from nsa_serve.bench.serve.console import block, error_lines, needle_lines

    lines = [*block(point.figures, point.shape)]
    if point.found:
        lines[-1:] = [*needle_lines(point.found), lines[-1]]
    print(*lines, *error_lines(point.errors), *point.notes, sep="\n", flush=True)


def _show_sweep(run: "Run") -> None:
    from nsa_serve.bench.serve.console import sweep_lines

    if run.options.sweep is not None and len(run.points) > 1:
        print(*sweep_lines(run.points, run.options.sweep.over), sep="\n", flush=True)


def _keep(
    run: "Run", output: Path | None, requests: Path | None, report: Path | None, *, detailed: bool
) -> None:
    from nsa_serve.bench.serve.results import write, write_json, write_requests

    if output is not None:
        write_json(output, run, detailed=detailed)
    if requests is not None:
        write_requests(requests, run)
    if report is not None:
        from nsa_serve.bench.serve.report import report_html

        write(report, report_html(run).encode())
    if written := [str(path) for path in (output, requests, report) if path is not None]:
        typer.echo(f"wrote {', '.join(written)}", err=True)


def _check_writable(*paths: Path | None) -> None:
    """Before an hour of measuring, not after it."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, expected a file to write")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            was_there = path.exists()
            path.open("ab").close()
            if not was_there:
                path.unlink()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--header")
    return name.strip(), value.strip()


def _json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"no JSON object: {error}", param_hint="--extra-body") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in text.split(",") if item.strip())
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r}") from None


def _sweep(text: str) -> "Sweep":
    from nsa_serve.bench.serve.options import Sweep

    over, _, values = text.partition(":")
    if over == "rate":
        return Sweep("rate", _numbers(values))
    if over == "concurrency":
        return Sweep("concurrency", _numbers(values))
    raise typer.BadParameter("expected rate:… or concurrency:…", param_hint="--sweep")


def _goals(texts: list[str]) -> "dict[Metric, float]":
    """Bounds as `ttft:500`, several in one text or one in each."""
    goals: dict[Metric, float] = {}
    for goal in (item for text in texts for item in re.split(r"[\s,]+", text.strip())):
        match = re.fullmatch(r"(ttft|tpot|itl|e2el):([0-9.]+)", goal)
        if match is None or match[2].count(".") > 1:
            raise typer.BadParameter(f"expected ttft|tpot|itl|e2el:MILLISECONDS, got {goal!r}")
        goals[cast("Metric", match[1])] = float(match[2])
    return goals
