"""NSA beside dense attention as users of a server see them, by length of the prompt.

    .venv/bin/python -m benchmarks.serving [--model random:1b] [-- flags of `nsa-serve serve`]

One server after the other with the same weights, but for what they attend to; `nsa-serve bench
serve` sends both the same requests, --concurrency of them at a time. Puts the run into
benchmarks/results/serving.json, in the place of one of the same model and answers, then writes the
tables of docs/load-tests.md and draws docs/images/served.png; `--only-draw` does the latter alone.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.gpu_tables import filled
from benchmarks.servers import COMMAND, serve
from nsa_serve.bench.machine import this_machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
PAGE = HERE.parent / "docs" / "load-tests.md"
IMAGE = HERE.parent / "docs" / "images" / "served.png"
SIDES = {"dense": "#555555", "nsa": "#d62728"}
"""Colours."""
COLUMNS = {
    "median_ttft_ms": ("TTFT, ms", 0),
    "p99_ttft_ms": ("99th, ms", 0),
    "median_itl_ms": ("ITL, ms", 2),
    "p99_itl_ms": ("99th, ms", 1),
    "output_throughput": ("output tokens/s", 0),
}
Point = dict[str, Any]
Run = dict[str, Any]


def main() -> None:
    """Measure both sides, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:1b")
    parser.add_argument("--vocab-size", type=int, default=128_256, help="prompts' ids are below")
    parser.add_argument("--input-len", type=int, nargs="+", default=[1000, 8000, 32_000, 64_000])
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32, help="of each length")
    parser.add_argument("--only-draw", action="store_true")
    parser.add_argument("serve", nargs="*", help="flags of `nsa-serve serve`, behind --")
    options = parser.parse_args()
    runs: list[Run] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if not options.only_draw:
        run = measured(options)
        others = [other for other in runs if key(other) != key(run)]
        runs = sorted([*others, run], key=key)
        RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), {"served": tables(runs)}))
    draw(runs)


def key(run: Run) -> tuple[str, int]:
    """What no two runs have in common."""
    return run["model"], run["output_len"]


def measured(options: argparse.Namespace) -> Run:
    """Figures of both sides, a point for each length."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "machine": msgspec.to_builtins(this_machine(device)),
        "model": options.model,
        "output_len": options.output_len,
        "concurrency": options.concurrency,
        "requests": options.requests,
        "sides": {side: list(measure(side, options)) for side in SIDES},
    }


def measure(side: str, options: argparse.Namespace) -> Iterator[Point]:
    """One server's points."""
    model = [] if options.model == "built-in" else [options.model]
    with serve([*model, "--attention", side, *options.serve]) as url:
        for input_len in options.input_len:
            point = load(url, input_len, options)
            assert point["failed"] == 0, point
            print(side, input_len, {name: round(point[name], 2) for name in COLUMNS}, flush=True)
            yield {"input_len": input_len, **{name: point[name] for name in COLUMNS}}


def load(url: str, input_len: int, options: argparse.Namespace) -> Point:
    """What `bench serve` measures."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        flags = {
            "--base-url": url,
            "--max-concurrency": options.concurrency,
            "--num-prompts": options.requests,
            "--num-warmups": options.concurrency // 4,
            "--random-input-len": input_len,
            "--random-output-len": options.output_len,
            "--vocab-size": options.vocab_size,
            "--seed": input_len,
            "--output": output,
        }
        words = [str(word) for pair in flags.items() for word in pair]
        command = [*COMMAND, "bench", "serve", "--ignore-eos", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        point: Point = json.loads(output.read_text())
        return point


def tables(runs: Sequence[Run]) -> str:
    """Of each run."""
    figure = f"![Time to the first token, time between tokens and throughput](images/{IMAGE.name})"
    return "\n\n".join([figure, *map(table, runs)])


def table(run: Run) -> str:
    """A row for each length and side."""
    machine = run["machine"]
    lines = [
        f"**{run['model']}, answers of {run['output_len']:,} tokens.** {run['requests']} requests "
        f"of each length, {run['concurrency']} at a time; medians. One {machine['device']}, torch "
        f"{machine['torch']}, Triton {machine['triton']}, commit {machine['commit']}, "
        f"{machine['date']}.",
        "",
        "| prompt | attention | " + " | ".join(name for name, _ in COLUMNS.values()) + " |",
        "| ---: | --- |" + " ---: |" * len(COLUMNS),
    ]
    sides = run["sides"]
    for points in zip(*sides.values(), strict=True):
        for side, point in zip(sides, points, strict=True):
            cells = [f"{point[name]:,.{digits}f}" for name, (_, digits) in COLUMNS.items()]
            lines.append(f"| {point['input_len']:,} | {side} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs: Sequence[Run]) -> None:
    """Three panels for each run, by length of the prompt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    panels = {
        "median_ttft_ms": "time to first token, ms",
        "median_itl_ms": "time between tokens, ms",
        "output_throughput": "output tokens/s",
    }
    figure, rows = plt.subplots(len(runs), 3, figsize=(12, 3.5 * len(runs)), squeeze=False)
    for run, row in zip(runs, rows, strict=True):
        for axes, (name, title) in zip(row, panels.items(), strict=True):
            for side, color in SIDES.items():
                points = run["sides"][side]
                x = [point["input_len"] for point in points]
                axes.plot(x, [p[name] for p in points], "o-", color=color, label=side)
            axes.set(title=title, xscale="log", yscale="log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
            axes.set_xticks(x)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.minorticks_off()
            axes.grid(color="#dddddd", linewidth=0.6)
        row[0].set_ylabel(f"{run['model']}, answers of {run['output_len']:,}")
        row[0].legend(frameon=False)
    for axes in rows[-1]:
        axes.set_xlabel("prompt, tokens")
    figure.tight_layout()
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
