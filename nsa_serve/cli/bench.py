"""`nsa-serve bench`: kernels beside dense attention, engines, and servers under load."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from nsa_serve.cli.bench_serve import serve
from nsa_serve.cli.help import HelpfulCommand
from nsa_serve.cli.options import ModelArgument, engine_options
from nsa_serve.config import EngineConfig
from nsa_serve.engine.progress import ProgressBar
from nsa_serve.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from nsa_serve.bench.results import EngineReport, Report

app = typer.Typer(
    help="Measure a server, an engine, or attention kernels.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command(cls=HelpfulCommand)(serve)

_BATCHES = (1, 8, 32)
_CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
_PROMPTS = (2048, 8192, 32_768, 65_536, 131_072)
_CPU_SIZES = ((1, 2), (128, 256), (128,))

_HEADS_HELP = "HEADS/KV_HEADS/DIM[/VALUE_DIM], may be given several times, or `all`. 64/4/128."
_BATCH_HELP = "Sequences of a decode step; may be given several times. 1, 8 and 32."
_CONTEXT_HELP = "Tokens of each sequence when decoding; may be given several times. 1k to 128k."
_PROMPT_HELP = "Tokens of a prefill; may be given several times, 0 for none. 2k to 128k."
_DEVICE_HELP = "cpu makes a tiny run in plain torch, or in Triton's interpreter."
_FA3_HELP = "A shared object of FlashAttention-3; that of an installed package unless given."
_WARM_HELP = "Read the same pages in every call, which a large L2 cache then keeps."
_OUTPUT_HELP = "Write the results there as JSON; `bench kernels` does so after every shape."
_JSON_HELP = "Print JSON instead of tables."

Output = Annotated[Path | None, typer.Option(help=_OUTPUT_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help=_JSON_HELP)]
InputLen = Annotated[list[int] | None, typer.Option(help="Tokens of a prompt.", min=1)]


@app.command(cls=HelpfulCommand)
def kernels(
    heads: Annotated[list[str] | None, typer.Option(help=_HEADS_HELP)] = None,
    batch: Annotated[list[int] | None, typer.Option(help=_BATCH_HELP, min=1)] = None,
    context: Annotated[list[int] | None, typer.Option(help=_CONTEXT_HELP, min=1)] = None,
    prompt: Annotated[list[int] | None, typer.Option(help=_PROMPT_HELP, min=0)] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help=_DEVICE_HELP)] = "cuda",
    fa3_library: Annotated[Path | None, typer.Option(help=_FA3_HELP)] = None,
    warm_cache: Annotated[bool, typer.Option("--warm-cache", help=_WARM_HELP)] = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """One attention layer, NSA beside dense.

    Decode and prefill, beside what the machine could do at best. Every time is of a result that
    was checked. The exit status is 1 if one of NSA's was wrong.
    """
    from nsa_serve.bench.kernels import KernelBench, KernelOptions
    from nsa_serve.bench.results import write_report
    from nsa_serve.bench.shapes import ALL_SHAPES, parse_heads
    from nsa_serve.bench.tables import print_kernel_header, print_layer

    sizes = _CPU_SIZES if device == "cpu" else (_BATCHES, _CONTEXTS, _PROMPTS)
    shapes = ALL_SHAPES if heads == ["all"] else tuple(map(parse_heads, heads or ["64/4/128"]))
    options = KernelOptions(
        heads=shapes,
        batches=tuple(batch or sizes[0]),
        contexts=tuple(sorted(context or sizes[1])),
        prompts=tuple(n for n in prompt or sizes[2] if n),
        device=device,
        cold_cache=not warm_cache,
        fa3_library=fa3_library,
    )
    console = _console(as_json)
    with ProgressBar("Measuring", options.num_points, enabled=True) as bar:
        bench = KernelBench(options, bar.advance)
        print_kernel_header(console, bench.report, bench.missing)
        for layer in bench:
            print_layer(console, layer)
            if output is not None:
                write_report(output, bench.report)
    if as_json:
        _print_json(bench.report)
    if not bench.nsa_is_complete:
        raise typer.Exit(1)


@app.command(cls=HelpfulCommand)
@engine_options(model=ModelArgument)
def latency(
    config: EngineConfig,
    input_len: InputLen = None,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Requests that start together.", min=1)
    ] = None,
    repeat: Annotated[int, typer.Option(help="Times that each batch is run.", min=1)] = 3,
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Leave out batches with more prompt tokens than that.", min=1)
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Time to the first token and between tokens.

    For batches of random prompts. --input-len and --batch-size may be given several times: 512,
    and 1. Random weights serve for measuring too: random:1b, random:8b.
    """
    from nsa_serve.bench.engine import EngineBench

    bench = EngineBench(config)
    sizes = [(batch, n) for n in input_len or [512] for batch in batch_size or [1]]
    points = []
    with ProgressBar("Measuring", len(sizes), enabled=True) as bar:
        for batch, length in sizes:
            most = max_batch_tokens or sys.maxsize
            points.append(bench.latency(batch, length, output_len, repeat, most))
            bar.advance(1)
    _show(bench.report(latency=points), output, as_json)


@app.command(cls=HelpfulCommand)
@engine_options(model=ModelArgument)
def throughput(
    config: EngineConfig,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 512,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.", min=1)] = 128,
    num_prompts: Annotated[int, typer.Option(help="Requests.", min=1)] = 256,
    vary: Annotated[
        float, typer.Option(help="Draw lengths between (1 − vary) times as long and as long.")
    ] = 0.0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Tokens per second of many requests.

    Their prompts are random, and the engine gets them as fast as it takes them.
    """
    from nsa_serve.bench.engine import EngineBench, random_lengths

    if not 0.0 <= vary < 1.0:
        raise typer.BadParameter("must be at least 0 and below 1", param_hint="--vary")
    bench = EngineBench(config)
    if input_len + output_len > bench.info.max_model_len:
        raise ConfigError(f"max_model_len is {bench.info.max_model_len}: too short for a request")
    input_lens, output_lens = (
        random_lengths(num_prompts, length, vary) for length in (input_len, output_len)
    )
    done = bench.throughput(input_lens, output_lens)
    _show(bench.report(throughput=done), output, as_json)


def _show(report: "EngineReport", output: Path | None, as_json: bool) -> None:
    from nsa_serve.bench.results import write_report
    from nsa_serve.bench.tables import print_engine

    if output is not None:
        write_report(output, report)
    if as_json:
        _print_json(report)
    else:
        print_engine(_console(False), report)


def _console(silent: bool) -> "Console":
    """Standard output; wide enough for the tables where it is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, quiet=silent)
    return console if console.is_terminal else Console(highlight=False, quiet=silent, width=160)


def _print_json(report: "Report") -> None:
    print(msgspec.json.encode(report).decode())
