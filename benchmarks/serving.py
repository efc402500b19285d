"""NSA beside dense attention as users of a server see them, by length of the prompt.

    .venv/bin/python -m benchmarks.serving [--model random:1b] [-- flags of `nsa-serve serve`]

One server after the other with the same weights, but for what they attend to; `nsa-serve bench
serve` sends both the same requests, --concurrency of them at a time. Writes
benchmarks/results/serving.json, then the table of docs/load-tests.md and docs/images/served.png;
`--only-draw` does the latter alone.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.gpu_tables import filled
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
COMMAND = [sys.executable, "-c", "from nsa_serve.cli.main import main; main()"]
Point = dict[str, Any]


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
    if not options.only_draw:
        RESULTS.write_text(json.dumps(measured(options), indent=1) + "\n")
    result = json.loads(RESULTS.read_text())
    PAGE.write_text(filled(PAGE.read_text(), {"served": table(result)}))
    draw(result)


def measured(options: argparse.Namespace) -> dict[str, Any]:
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


@contextmanager
def serve(arguments: Sequence[str]) -> Iterator[str]:
    """The address of a server with these arguments, until we leave."""
    command = [*COMMAND, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"ready at (http://\S+)", line) for line in process.stdout)
            match = next(filter(None, found), None)
            if match is None:
                raise SystemExit("the server did not start")
            yield match[1]
        finally:
            process.terminate()


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


def table(result: dict[str, Any]) -> str:
    """Of both sides, a row for each length and side."""
    machine = result["machine"]
    lines = [
        f"One {machine['device']}, torch {machine['torch']}, Triton {machine['triton']}, commit "
        f"{machine['commit']}, {machine['date']}: {result['model']}, {result['requests']} requests "
        f"of each length, {result['concurrency']} at a time, answers of {result['output_len']} "
        "tokens; medians.",
        "",
        "![Time to the first token, time between tokens and throughput](images/served.png)",
        "",
        "| prompt | attention | " + " | ".join(name for name, _ in COLUMNS.values()) + " |",
        "| ---: | --- |" + " ---: |" * len(COLUMNS),
    ]
    sides = result["sides"]
    for points in zip(*sides.values(), strict=True):
        for side, point in zip(sides, points, strict=True):
            cells = [f"{point[name]:,.{digits}f}" for name, (_, digits) in COLUMNS.items()]
            lines.append(f"| {point['input_len']:,} | {side} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> None:
    """Three panels by length of the prompt."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    panels = {
        "median_ttft_ms": "time to first token, ms",
        "median_itl_ms": "time between tokens, ms",
        "output_throughput": "output tokens/s",
    }
    figure, places = plt.subplots(1, len(panels), figsize=(12, 3.6))
    for axes, (name, title) in zip(places, panels.items(), strict=True):
        for side, color in SIDES.items():
            points = result["sides"][side]
            x = [point["input_len"] for point in points]
            axes.plot(x, [p[name] for p in points], "o-", color=color, label=side)
        axes.set(title=title, xlabel="prompt, tokens", xscale="log", yscale="log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axes.set_xticks(x)
        axes.minorticks_off()
        axes.grid(color="#dddddd", linewidth=0.6)
    places[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
