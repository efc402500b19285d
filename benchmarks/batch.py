"""A batch beside the engine's own throughput: the same requests by each way, in turn.

    .venv/bin/python benchmarks/batch.py

The ways are `bench throughput`'s loop (the engine in this process, token ids in and out), the
command `run-batch`, and the Batch API of a server that does nothing else. Over the stand-in runner,
whose steps take a fixed time, and over the built-in model. Each way runs in a process of its own;
loading is left out, and so is what the engine computes to warm up. Medians of several rounds.
Writes benchmarks/results/batch.json.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import openai

from nsa_serve.bench.engine import EngineBench
from nsa_serve.config import EngineConfig
from nsa_serve.engine.stand_in import OPTIONS_VARIABLE

RESULTS = Path(__file__).parent / "results" / "batch.json"
COMMAND = str(Path(sys.executable).with_name("nsa-serve"))
URL: Literal["/v1/completions"] = "/v1/completions"


@dataclass(frozen=True)
class Case:
    """Requests, and what they are given to."""

    runner: str
    model_name: str
    vocab_size: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    at_once: int
    step_ms: float = 0.0

    @property
    def flags(self) -> list[str]:
        """Of a command with an engine."""
        return ["--runner", self.runner, "--max-num-seqs", str(self.at_once)]

    @property
    def environment(self) -> dict[str, str]:
        """Of a process with this runner."""
        return {**os.environ, OPTIONS_VARIABLE: json.dumps({"step_seconds": self.step_ms / 1e3})}

    def prompts(self) -> list[list[int]]:
        """The same at every call."""
        generator = random.Random(0)
        return [
            generator.choices(range(3, self.vocab_size), k=self.prompt_tokens)
            for _ in range(self.requests)
        ]

    def write(self, path: Path) -> None:
        """The requests as a batch's input."""
        body = {
            "model": self.model_name,
            "max_tokens": self.answer_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        with path.open("w") as file:
            for number, prompt in enumerate(self.prompts()):
                request = {"custom_id": str(number), "method": "POST", "url": URL}
                print(json.dumps({**request, "body": {**body, "prompt": prompt}}), file=file)


CASES = {
    "stand-in, a step takes 2.5 ms": Case("stand-in", "stand-in", 256, 2000, 64, 64, 64, 2.5),
    "built-in model": Case("model", "SmolLM2-135M-Instruct-NSA", 49_152, 48, 32, 32, 8),
}


def main() -> None:
    """Measure every way, or, as a child, the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", metavar="CASE", help="the engine's own throughput")
    parser.add_argument("--only", choices=CASES, help="one case; nothing is written")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(engine(CASES[options.engine])))
        return
    names = [options.only] if options.only else list(CASES)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            runs[name].append(measure(name))
            print(f"round {number + 1}, {name}: {runs[name][-1]}", file=sys.stderr)
    result = {
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        "cases": {name: {**asdict(CASES[name]), **summary(runs[name])} for name in names},
    }
    if not options.only:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["cases"], indent=1))


def summary(rounds: list[dict[str, float]]) -> dict[str, object]:
    """Medians of tokens per second, and of their ratios to the engine's in the same round."""
    ways = list(rounds[0])
    return {
        "tokens_per_second": {way: statistics.median(r[way] for r in rounds) for way in ways},
        "of_the_engine": {
            way: statistics.median(r[way] / r["engine"] for r in rounds) for way in ways
        },
        "rounds": rounds,
    }


def measure(name: str) -> dict[str, float]:
    """Tokens per second by each way."""
    case = CASES[name]
    ways: dict[str, Callable[[Case, Path], float]] = {"run-batch": offline, "Batch API": online}
    child = [sys.executable, __file__, "--engine", name]
    done = subprocess.run(
        child, stdout=subprocess.PIPE, text=True, check=True, env=case.environment
    )
    found: dict[str, float] = {"engine": json.loads(done.stdout.splitlines()[-1])}
    with tempfile.TemporaryDirectory() as folder:
        case.write(Path(folder) / "requests.jsonl")
        for way, of in ways.items():
            found[way] = of(case, Path(folder))
    return found


def engine(case: Case) -> float:
    """The loop of `bench throughput`."""
    bench = EngineBench(EngineConfig(runner=case.runner, max_num_seqs=case.at_once))  # type: ignore[arg-type]
    done = bench.throughput_of(case.prompts(), [case.answer_tokens] * case.requests)
    return done.output_tokens / done.seconds


def offline(case: Case, folder: Path) -> float:
    """The command, by its own clock, which starts when the model is loaded."""
    files = ["-i", str(folder / "requests.jsonl"), "-o", str(folder / "answers.jsonl")]
    command = [COMMAND, "run-batch", *files, *case.flags]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, check=True, env=case.environment
    )
    match = re.search(r"^([\d,]+) answered, 0 failed.*\(([\d,.]+) tokens/s\)", done.stderr)
    if match is None or int(match[1].replace(",", "")) != case.requests:
        raise SystemExit(f"run-batch did not answer everything: {done.stderr}")
    return float(match[2].replace(",", ""))


def online(case: Case, folder: Path) -> float:
    """The Batch API, from the call that makes a batch until it is seen to be completed."""
    with serve(case, folder) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        file = client.files.create(file=folder / "requests.jsonl", purpose="batch")
        started = time.perf_counter()
        batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
        while batch.status in ("validating", "in_progress", "finalizing"):
            time.sleep(0.05)
            batch = client.batches.retrieve(batch.id)
        seconds = time.perf_counter() - started
    counts = batch.request_counts
    if counts is None or counts.completed != case.requests:
        raise SystemExit(f"the Batch API did not answer everything: {batch}")
    return case.requests * case.answer_tokens / seconds


@contextmanager
def serve(case: Case, folder: Path) -> Iterator[int]:
    """A server of our own until we leave; its port."""
    command = [COMMAND, "serve", *case.flags, "--port", "0", "--batch-dir", str(folder / "batches")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=case.environment,
    ) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"ready at http://\S+:(\d+)", line) for line in process.stdout)
            match = next(filter(None, found), None)
            if match is None:
                raise SystemExit("the server did not start")
            yield int(match[1])
        finally:
            process.terminate()


def cpu_name() -> str:
    """As the kernel names it."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    main()
